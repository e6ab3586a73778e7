"""Providers get calls in proportion to their speed, and never more at once than they take."""

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from acceptance.running import RunningServer
from fakes.load import OK, Caller, PacedUpstream, load
from gateway import SECRET, running

LANES = ("auto", "off")
SPEEDS = (1, 2, 4, 8)


@asynccontextmanager
async def four(caller: Caller, seconds: float, slots: int) -> AsyncGenerator[list[PacedUpstream]]:
    """Providers of speeds 1, 2, 4 and 8; the slowest takes so many seconds a call."""
    async with AsyncExitStack() as stack:
        upstreams: list[PacedUpstream] = []
        for speed in SPEEDS:
            # Uneven, or all would move in step and the end of the load would decide the shares.
            upstream = PacedUpstream(seconds / speed, spread=0.5)
            upstreams.append(await stack.enter_async_context(upstream))
            name = f"speed-{speed}"
            await caller.provider(name, upstream.base_url, concurrency=slots or None)
        yield upstreams


async def shares(
    caller: Caller, upstreams: list[PacedUpstream], *, calls: int, callers: int
) -> list[float]:
    """What each got of what its speed is owed, 1.0 where it is just that.

    Counted from the second answer of every caller to the last call's beginning.
    """
    counted: list[list[int]] = []

    async def count() -> None:
        counted.append([upstream.served for upstream in upstreams])

    outcomes = await load(
        lambda number: caller.ask(f"call-{number}"),
        calls=calls,
        at_once=callers,
        at={2 * callers: count, calls - 1: count},
    )
    assert outcomes == {OK: calls}
    served = [after - before for before, after in zip(*counted, strict=True)]
    owed = [sum(served) * speed / sum(SPEEDS) for speed in SPEEDS]
    return [got / part for got, part in zip(served, owed, strict=True)]


@pytest.mark.parametrize("slots", [0, 5], ids=["unlimited", "5 slots each"])
async def test_shares_follow_speed(tmp_path: Path, migrated: bytes, slots: int) -> None:
    async with running(tmp_path, migrated) as gateway:
        caller = Caller(gateway.url, SECRET)
        async with four(caller, 0.24, slots) as upstreams:
            found = await shares(caller, upstreams, calls=800, callers=24)
            # One call of the slowest is 2 % of its part here, and a busy machine slows the fast
            # ones down most; equal shares would be 3.75, 1.88, 0.94 and 0.47.
            assert found == pytest.approx([1.0] * 4, rel=0.35)
            if slots:
                assert max(upstream.most_running for upstream in upstreams) == slots
            await caller.close()


@pytest.mark.parametrize("lane", ["auto", "off"])
async def test_idle_providers_take_turns(tmp_path: Path, migrated: bytes, lane: str) -> None:
    async with (
        PacedUpstream() as first,
        PacedUpstream() as second,
        running(tmp_path, migrated, HOT_LANE=lane) as gateway,
    ):
        caller = Caller(gateway.url, SECRET)
        await caller.provider("first", first.base_url)
        await caller.provider("second", second.base_url)
        for number in range(20):
            assert await caller.ask(f"call-{number}") == OK
        assert (first.served, second.served) == (10, 10)
        await caller.close()


@pytest.mark.long
@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("slots", [0, 8], ids=["unlimited", "8 slots each"])
async def test_shares_are_within_a_tenth(tmp_path: Path, slots: int, lane: str) -> None:
    environment = {"HOT_LANE": lane, "AUTH_SECRET": SECRET, "LOCAL_MODELS": "false"}
    server = await asyncio.to_thread(RunningServer.start, tmp_path, environment)
    caller = Caller(f"http://127.0.0.1:{server.port}", SECRET)
    try:
        async with four(caller, 1.2, slots) as upstreams:
            found = await shares(caller, upstreams, calls=4000, callers=120)
            shown = ", ".join(f"{share:.3f}" for share in found)
            sys.stdout.write(f"{lane:4} slots {slots}: {shown} of 1:2:4:8\n")
            assert found == pytest.approx([1.0] * 4, rel=0.1)
            if slots:
                assert max(upstream.most_running for upstream in upstreams) <= slots
            await caller.close()
    finally:
        server.stop()


@pytest.mark.parametrize("lane", LANES)
async def test_one_slot_never_sees_two_calls(tmp_path: Path, migrated: bytes, lane: str) -> None:
    async with (
        PacedUpstream(0.001, spread=0.5) as upstream,
        running(tmp_path, migrated, HOT_LANE=lane) as gateway,
    ):
        caller = Caller(gateway.url, SECRET)
        await caller.provider("single", upstream.base_url, concurrency=1)
        outcomes = await load(
            lambda number: caller.ask(f"call-{number}", stream=number % 2 == 1),
            calls=500,
            at_once=20,
        )
        assert outcomes == {OK: 500}
        assert upstream.most_running == 1
        assert upstream.served == 500
        await caller.close()

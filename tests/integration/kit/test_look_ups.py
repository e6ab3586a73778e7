"""Look-ups of names that callers chose: bounded, shared, and apart from everybody else's."""

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Sequence

import pytest

from aiserver.kit.look_ups import Limits, LookUps, NotLookedUp, threaded
from aiserver.kit.outbound import AddressRefused, Guard, Outbound, Unreachable
from fakes.receiver import Receiver

AGAIN = socket.gaierror(socket.EAI_AGAIN, "later")


class Names:
    """Names ending in .slow.test get no answer before `end`; every other one is on loopback."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._ended: asyncio.Future[Sequence[str]] = asyncio.get_running_loop().create_future()
        self._more = asyncio.Event()

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        self._more.set()
        if host.endswith(".slow.test"):
            return await asyncio.shield(self._ended)
        return ["127.0.0.1"]

    async def reach(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.asked) < count:
                self._more.clear()
                await self._more.wait()

    def end(self, error: OSError | None = None) -> None:
        if error is None:
            self._ended.set_result(["127.0.0.1"])
        else:
            self._ended.set_exception(error)


class Watch:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
async def names() -> Names:
    return Names()


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
async def look_ups(names: Names, watch: Watch) -> AsyncIterator[LookUps]:
    limits = Limits(most=3, per_line=2, wait=0.05, names=2)
    opened = LookUps(names.resolve, limits=limits, monotonic=watch)
    yield opened
    await opened.close()


def asking(look_ups: LookUps, *hosts: str, caller: int | None = 1) -> list[asyncio.Task[object]]:
    async def ask(host: str) -> object:
        return await look_ups.find(host, 443, caller=caller)

    return [asyncio.create_task(ask(host)) for host in hosts]


async def gone(tasks: Sequence[asyncio.Task[object]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_hanging_names_do_not_touch_another_receiver() -> None:
    hung, asked, begun = threading.Event(), list[str](), asyncio.Semaphore(0)
    loop = asyncio.get_running_loop()

    def ask(host: str, port: int) -> list[str]:
        asked.append(host)
        if host.endswith(".slow.test"):
            loop.call_soon_threadsafe(begun.release)
            hung.wait(30)
        return ["127.0.0.1"]

    async def send(host: str, port: int, caller: int) -> int:
        url = f"http://{host}:{port}/"
        return (await outbound.send(url, headers={}, seconds=10, caller=caller)).status

    outbound = Outbound(Guard("127.0.0.1"), resolve=threaded(ask))
    async with Receiver() as receiver:
        slow = [asyncio.create_task(send(f"h{n}.slow.test", 80, caller=1)) for n in range(64)]
        for _ in range(4):
            await begun.acquire()
        assert await send("hooks.example", receiver.port, caller=2) == 200
        await outbound.check("https://hooks.example/", caller=3)
        assert sum(host.endswith(".slow.test") for host in asked) == 4
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        await outbound.close()
        hung.set()


async def test_names_of_one_caller_are_bounded(look_ups: LookUps, names: Names) -> None:
    slow = asking(look_ups, "a.slow.test", "b.slow.test")
    await names.reach(2)
    with pytest.raises(NotLookedUp):
        await look_ups.find("hooks.example", 443, caller=1)
    assert await look_ups.find("hooks.example", 443, caller=2) == ["127.0.0.1"]
    await gone(slow)
    # A look-up that nobody waits for has its place until it ends.
    with pytest.raises(NotLookedUp):
        await look_ups.find("hooks.example", 443, caller=1)
    slow = asking(look_ups, "a.slow.test", "b.slow.test")
    names.end()
    await asyncio.gather(*slow)
    assert await look_ups.find("hooks.example", 443, caller=1) == ["127.0.0.1"]


async def test_names_of_all_callers_are_bounded(look_ups: LookUps, names: Names) -> None:
    slow = [
        *asking(look_ups, "a.slow.test", "b.slow.test"),
        *asking(look_ups, "c.slow.test", caller=2),
    ]
    await names.reach(3)
    with pytest.raises(NotLookedUp):
        await look_ups.find("hooks.example", 443, caller=3)
    names.end()
    await asyncio.gather(*slow)
    assert await look_ups.find("hooks.example", 443, caller=3) == ["127.0.0.1"]


async def test_burst_of_good_names_waits_for_room(names: Names) -> None:
    look_ups = LookUps(names.resolve, limits=Limits(most=3, per_line=2, wait=10))
    hosts = [f"h{n}.example" for n in range(64)]
    assert await asyncio.gather(*asking(look_ups, *hosts)) == [["127.0.0.1"]] * 64
    assert sorted(names.asked) == sorted(hosts)


async def test_unknown_callers_share_a_line_by_domain(look_ups: LookUps, names: Names) -> None:
    slow = asking(look_ups, "a.slow.test", "b.slow.test", caller=None)
    await names.reach(2)
    with pytest.raises(NotLookedUp):
        await look_ups.find("hooks.Slow.test.", 443)
    assert await look_ups.find("hooks.example", 443) == ["127.0.0.1"]
    await gone(slow)


async def test_one_name_is_looked_up_once_at_a_time(look_ups: LookUps, names: Names) -> None:
    first = asking(look_ups, "a.slow.test")
    await names.reach(1)
    others = asking(look_ups, *["A.slow.test"] * 9, caller=2)
    await gone(first)
    names.end()
    assert await asyncio.gather(*others) == [["127.0.0.1"]] * 9
    assert names.asked == ["a.slow.test"]


async def test_slow_name_is_not_waited_for(look_ups: LookUps, names: Names, watch: Watch) -> None:
    first = asking(look_ups, "a.slow.test")
    await names.reach(1)
    watch.seconds = 5
    with pytest.raises(NotLookedUp):
        await look_ups.find("a.slow.test", 443, caller=2)
    names.end()
    assert await asyncio.gather(*first) == [["127.0.0.1"]]
    assert await look_ups.find("a.slow.test", 443, caller=2) == ["127.0.0.1"]


async def test_name_that_timed_out_is_left_alone_for_a_while(
    look_ups: LookUps, names: Names, watch: Watch
) -> None:
    first = asking(look_ups, "a.slow.test")
    await names.reach(1)
    watch.seconds = 5
    names.end(AGAIN)
    with pytest.raises(socket.gaierror):
        await first[0]
    watch.seconds = 34.9
    with pytest.raises(NotLookedUp):
        await look_ups.find("a.slow.test", 443)
    watch.seconds = 35
    with pytest.raises(socket.gaierror):
        await look_ups.find("a.slow.test", 443)
    assert len(names.asked) == 2


async def test_quick_failure_is_asked_again(look_ups: LookUps, names: Names) -> None:
    names.end(AGAIN)
    for _ in range(2):
        with pytest.raises(socket.gaierror):
            await look_ups.find("a.slow.test", 443)
    assert len(names.asked) == 2


async def test_memory_of_slow_names_is_bounded(
    look_ups: LookUps, names: Names, watch: Watch
) -> None:
    slow = [
        *asking(look_ups, "a.slow.test", "b.slow.test"),
        *asking(look_ups, "c.slow.test", caller=2),
    ]
    await names.reach(3)
    watch.seconds = 5
    names.end(AGAIN)
    await asyncio.gather(*slow, return_exceptions=True)
    with pytest.raises(socket.gaierror):
        await look_ups.find("a.slow.test", 443)
    for host in ("b.slow.test", "c.slow.test"):
        with pytest.raises(NotLookedUp):
            await look_ups.find(host, 443)


async def test_crowded_look_ups_admit_and_leave_it_to_the_delivery() -> None:
    async def crowded(host: str, port: int) -> Sequence[str]:
        raise NotLookedUp

    outbound = Outbound(Guard(), resolve=crowded)
    await outbound.check("https://hooks.example/")
    with pytest.raises(Unreachable, match="name server is slow, or too many"):
        await outbound.send("https://hooks.example/", headers={})
    with pytest.raises(AddressRefused):
        await outbound.check("https://10.0.0.1/")
    await outbound.close()


async def test_thread_hands_on_addresses_and_errors() -> None:
    def fail(host: str, port: int) -> list[str]:
        raise AGAIN

    assert await threaded(lambda host, port: [f"{host}:{port}"])("a.test", 1) == ["a.test:1"]
    with pytest.raises(socket.gaierror):
        await threaded(fail)("a.test", 1)


HANGS = """
import asyncio, threading
from aiserver.kit.guard import Guard
from aiserver.kit.look_ups import threaded
from aiserver.kit.outbound import Outbound

async def main():
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    def ask(host, port):
        loop.call_soon_threadsafe(asked.set)
        threading.Event().wait()
    outbound = Outbound(Guard(), resolve=threaded(ask))
    checking = asyncio.create_task(outbound.check("https://hooks.example/"))
    await asked.wait()
    checking.cancel()
    await outbound.close()
    print("closed", flush=True)

asyncio.run(main())
"""


def test_process_ends_while_a_look_up_hangs() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=20, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "closed\n", "")

"""Loops beside the calls outlive what one round of them meets, and say it in few words."""

import asyncio

import pytest
from structlog.testing import capture_logs

from aiserver.kit import background as background_module
from aiserver.kit.background import Background
from aiserver.kit.db import StorageError


@pytest.mark.parametrize(
    ("failure", "traceback"), [(StorageError("away"), False), (KeyError("x"), True)]
)
async def test_loop_goes_on_after_a_failure(
    monkeypatch: pytest.MonkeyPatch,
    failure: Exception,
    traceback: bool,
) -> None:
    monkeypatch.setattr(background_module, "_AGAIN_SECONDS", 0)
    background, again, failures = Background(), asyncio.Event(), [failure]

    async def step() -> None:
        if failures:
            raise failures.pop()
        again.set()

    with capture_logs() as said:
        background.every(0, "upkeep", step)
        await asyncio.wait_for(again.wait(), 10)
        await background.stop()
    [line] = said
    assert (line["event"], "exc_info" in line) == ("loop_failed", traceback)


async def test_pause_ends_when_the_next_round_is_wanted_soon() -> None:
    background, began, soon = Background(), asyncio.Event(), asyncio.Event()

    async def step() -> None:
        began.set()

    background.every(3600, "upkeep", step, soon=soon)
    soon.set()
    await asyncio.wait_for(began.wait(), 10)
    assert not soon.is_set()
    await background.stop()

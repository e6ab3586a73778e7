"""Writes that go out together: all of them, in order, and none past a closed transport."""

import asyncio
from typing import Any, cast

import pytest

from aiserver.kit.writes import Writes


class Sent:
    """A transport that notes what is written."""

    def __init__(self, log: list[tuple[str, bytes]], name: str) -> None:
        self._log = log
        self._name = name
        self.closed = False

    def write(self, data: bytes) -> None:
        self._log.append((self._name, data))

    def is_closing(self) -> bool:
        return self.closed


class Loop:
    """A loop whose turns a test makes."""

    def __init__(self) -> None:
        self.now = 1.0
        self.later: list[Any] = []

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Any) -> None:
        self.later.append(callback)

    def turn(self) -> None:
        later, self.later = self.later, []
        for callback in later:
            callback()


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    loop = Loop()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    return loop


def test_first_write_of_a_millisecond_goes_out_at_once(loop: Loop) -> None:
    log: list[tuple[str, bytes]] = []
    writes, first, second = Writes(), cast(Any, Sent(log, "a")), cast(Any, Sent(log, "b"))
    writes.write(first, b"1")
    assert log == [("a", b"1")]
    writes.write(second, b"2")
    writes.write(first, b"3")
    assert log == [("a", b"1")]
    loop.turn()
    assert log == [("a", b"1"), ("b", b"2"), ("a", b"3")]
    loop.now += 0.001
    writes.write(second, b"4")
    assert log[-1] == ("b", b"4")


def test_nothing_passes_what_is_held(loop: Loop) -> None:
    log: list[tuple[str, bytes]] = []
    writes, one = Writes(), cast(Any, Sent(log, "a"))
    writes.write(one, b"1")
    writes.write(one, b"2")
    loop.now += 0.001
    writes.write(one, b"3")
    writes.flush()
    assert [data for _, data in log] == [b"1", b"2", b"3"]
    loop.turn()
    assert len(log) == 3


def test_closed_transport_is_left_alone(loop: Loop) -> None:
    log: list[tuple[str, bytes]] = []
    transport = Sent(log, "a")
    writes = Writes()
    writes.write(cast(Any, transport), b"1")
    writes.write(cast(Any, transport), b"2")
    transport.closed = True
    loop.turn()
    assert log == [("a", b"1")]

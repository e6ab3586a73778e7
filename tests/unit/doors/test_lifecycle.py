"""How long a server that stops lets what runs go on."""

from aiserver.doors.lifecycle import Lifecycle


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_grace_time_begins_with_the_signal() -> None:
    time = Time()
    lifecycle = Lifecycle(grace=10, now=time)
    time.now += 100
    assert lifecycle.left == 10
    lifecycle.drain()
    time.now += 4
    assert lifecycle.left == 6
    time.now += 7
    assert lifecycle.left == 0


def test_who_hurries_has_no_time_left() -> None:
    lifecycle = Lifecycle(grace=10, now=Time())
    lifecycle.drain()
    lifecycle.hurry()
    assert lifecycle.left == 0

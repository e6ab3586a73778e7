"""Processes side by side: started again when they end, given up when they never stay."""

import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from aiserver.kit.process import Backoff
from aiserver.kit.workers import NoWorkers, Workers
from fakes.workers import fail, ignore, serve

QUICK = Backoff(first=0.01, cap=0.01, give_up_after=3, healthy_after=0.0)
PATIENCE = 20.0


def pids(folder: Path, number: int) -> list[int]:
    path = folder / f"pids-{number}"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0]
    except OSError:
        return False


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < until
        time.sleep(0.01)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers_as_before() -> Generator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_all_serve_before_it_is_announced_and_end_when_told(tmp_path: Path) -> None:
    said: list[list[int]] = []

    def announce() -> None:
        said.append([len(pids(tmp_path, number)) for number in (1, 2)])
        stop()

    Workers(2, serve, (tmp_path,), grace=5.0, backoff=QUICK).run(announce)
    assert said == [[1, 1]]
    assert all((tmp_path / f"ended-{number}").exists() for number in (1, 2))


def test_worker_that_is_killed_is_started_again(tmp_path: Path) -> None:
    def kill_one() -> None:
        wait_for(lambda: bool(pids(tmp_path, 1)))
        os.kill(pids(tmp_path, 1)[0], signal.SIGKILL)
        wait_for(lambda: len(pids(tmp_path, 1)) == 2)
        stop()

    def announce() -> None:
        threading.Thread(target=kill_one).start()

    Workers(2, serve, (tmp_path,), grace=5.0, backoff=QUICK).run(announce)
    assert (len(pids(tmp_path, 1)), len(pids(tmp_path, 2))) == (2, 1)
    assert not any(alive(pid) for number in (1, 2) for pid in pids(tmp_path, number))


def test_workers_that_never_start_are_given_up(tmp_path: Path) -> None:
    with pytest.raises(NoWorkers, match="does not stay up"):
        Workers(2, fail, (tmp_path,), grace=1.0, backoff=QUICK).run(lambda: None)


def test_worker_that_does_not_end_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiserver.kit.workers._CLOSE_SECONDS", 0.0)
    Workers(1, ignore, (tmp_path,), grace=0.1, backoff=QUICK).run(stop)
    assert not alive(pids(tmp_path, 1)[0])

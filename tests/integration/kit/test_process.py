import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from textwrap import dedent

import pytest
import uvloop

from aiserver.kit.process import LINE_LIMIT, Backoff, Launch, State, Supervised

QUICK = Backoff(first=0.001, cap=0.002, give_up_after=3)

# Each process of a test says its name on a connection that the kernel closes when it dies.
PRELUDE = """
import os, signal, socket, subprocess, sys, time
def announce(name):
    witness = socket.create_connection(("127.0.0.1", PORT))
    witness.sendall(f"{name} {os.getpid()}\\n".encode())
    return witness
"""


class Witnesses:
    """Sees processes come, and go."""

    def __init__(self) -> None:
        self._arrivals: asyncio.Queue[tuple[str, int, asyncio.StreamReader]] = asyncio.Queue()
        self._writers: list[asyncio.StreamWriter] = []
        self.port = 0

    async def greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        name, pid = (await reader.readline()).decode().split()
        self._arrivals.put_nowait((name, int(pid), reader))

    async def arrival(self) -> tuple[str, int, asyncio.StreamReader]:
        async with asyncio.timeout(10):
            return await self._arrivals.get()

    def script(self, body: str) -> tuple[str, ...]:
        code = f"PORT = {self.port}\n{PRELUDE}\n{dedent(body)}"
        return (sys.executable, "-c", code)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


async def gone(reader: asyncio.StreamReader) -> None:
    async with asyncio.timeout(10):
        try:
            assert await reader.read() == b""
        except ConnectionResetError:
            return


@pytest.fixture
async def witnesses() -> AsyncIterator[Witnesses]:
    seen = Witnesses()
    server = await asyncio.start_server(seen.greet, "127.0.0.1", 0)
    seen.port = server.sockets[0].getsockname()[1]
    yield seen
    seen.close()
    server.close()
    await server.wait_closed()


class Watched:
    """A supervised command whose lines and states are kept."""

    def __init__(
        self,
        argv: tuple[str, ...],
        *,
        stdin: bytes = b"",
        ready_when: Callable[[str], bool] | None = None,
        backoff: Backoff = QUICK,
        clock: Callable[[], float] = lambda: 0.0,
        ready_within: float = 30.0,
    ) -> None:
        self.lines: list[str] = []
        self.states: list[State] = []
        self._changed = asyncio.Event()
        self.process = Supervised(
            lambda: Launch(argv, stdin=stdin),
            on_line=self.lines.append,
            ready_when=ready_when,
            on_change=self._note,
            backoff=backoff,
            clock=clock,
            ready_within=ready_within,
        )

    def _note(self) -> None:
        self.states.append(self.process.state)
        self._changed.set()

    async def reaches(self, state: State) -> None:
        async with asyncio.timeout(10):
            while state not in self.states:
                self._changed.clear()
                await self._changed.wait()


async def test_crashed_child_is_started_again(witnesses: Witnesses) -> None:
    watched = Watched(witnesses.script("announce('child'); time.sleep(60)"))
    await watched.process.start()
    _, first, reader = await witnesses.arrival()
    os.kill(first, signal.SIGKILL)
    await gone(reader)
    _, second, _ = await witnesses.arrival()
    assert second != first
    assert watched.process.state is State.RUNNING
    await watched.process.stop(5)


async def test_quick_failures_end_the_attempts() -> None:
    watched = Watched((sys.executable, "-c", "import sys; sys.exit('no model here')"))
    await watched.process.start()
    await watched.reaches(State.FAILED)
    assert watched.process.reason == "exited with code 1: no model here"
    assert watched.states.count(State.RUNNING) == 3
    await watched.process.stop(5)


async def test_failed_child_may_be_tried_again() -> None:
    watched = Watched((sys.executable, "-c", "raise SystemExit(3)"))
    await watched.process.start()
    await watched.reaches(State.FAILED)
    watched.states.clear()
    await watched.process.start()
    assert watched.process.state is State.STARTING
    await watched.reaches(State.FAILED)
    await watched.process.stop(5)


async def test_long_life_forgives_earlier_failures() -> None:
    hours = iter(range(0, 1_000_000, 3600))
    watched = Watched((sys.executable, "-c", ""), clock=lambda: float(next(hours)))
    await watched.process.start()
    async with asyncio.timeout(10):
        while watched.states.count(State.RUNNING) < QUICK.give_up_after + 2:
            watched._changed.clear()
            await watched._changed.wait()
    assert State.FAILED not in watched.states
    await watched.process.stop(5)


async def test_missing_command_is_named() -> None:
    watched = Watched(("/no/such/engine",))
    await watched.process.start()
    await watched.reaches(State.FAILED)
    assert watched.process.reason is not None
    assert "/no/such/engine could not be started" in watched.process.reason
    await watched.process.stop(5)


async def test_fault_of_launch_is_a_failure() -> None:
    def launch() -> Launch:
        raise LookupError("nowhere")

    watched = Watched(("unused",))
    watched.process._launch = launch
    await watched.process.start()
    await watched.reaches(State.FAILED)
    assert "nowhere" in (watched.process.reason or "")
    await watched.process.stop(5)


async def test_backoff_doubles_up_to_cap() -> None:
    backoff = Backoff(first=1, cap=5)
    assert [backoff.delay(failures) for failures in (1, 2, 3, 4)] == [1, 2, 4, 5]


async def test_stop_ends_grandchildren_too(witnesses: Witnesses) -> None:
    grandchild = witnesses.script(
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); w = announce('grandchild'); time.sleep(60)"
    )
    watched = Watched(
        witnesses.script(f"w = announce('child'); subprocess.run({grandchild!r}, check=False)")
    )
    await watched.process.start()
    arrivals = [await witnesses.arrival(), await witnesses.arrival()]
    assert {name for name, *_ in arrivals} == {"child", "grandchild"}
    await watched.process.stop(5)
    for *_, reader in arrivals:
        await gone(reader)
    assert watched.process.state is State.STOPPED


async def test_stop_forces_the_deaf(witnesses: Witnesses) -> None:
    watched = Watched(
        witnesses.script(
            "signal.signal(signal.SIGTERM, signal.SIG_IGN); w = announce('deaf'); time.sleep(60)"
        )
    )
    await watched.process.start()
    *_, reader = await witnesses.arrival()
    await watched.process.stop(0.05)
    await gone(reader)


async def test_start_and_stop_are_idempotent(witnesses: Witnesses) -> None:
    watched = Watched(witnesses.script("w = announce('child'); time.sleep(60)"))
    await watched.process.stop(5)
    await asyncio.gather(watched.process.start(), watched.process.start())
    _, pid, _ = await witnesses.arrival()
    assert watched.process.pid == pid
    await asyncio.gather(watched.process.stop(5), watched.process.stop(5))
    assert watched.process.state is State.STOPPED
    assert watched.states.count(State.STARTING) == 1
    assert watched.process._task is None


async def test_stop_interrupts_a_long_backoff() -> None:
    backoff = Backoff(first=3600, cap=3600)
    watched = Watched((sys.executable, "-c", "raise SystemExit(1)"), backoff=backoff)
    await watched.process.start()
    async with asyncio.timeout(10):
        while watched.process.reason is None:
            watched._changed.clear()
            await watched._changed.wait()
        await watched.process.stop(5)


async def test_stop_at_once_leaves_nothing(witnesses: Witnesses) -> None:
    watched = Watched(witnesses.script("w = announce('child'); time.sleep(60)"))
    await watched.process.start()
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await watched.process.stop(5)
    assert watched.process.state is State.STOPPED
    assert watched.process.pid is None


async def test_ready_line_marks_it_running() -> None:
    body = "import sys; print('warming', flush=True); print('up', flush=True); sys.stdin.read()"
    watched = Watched((sys.executable, "-c", body), ready_when=lambda line: line == "up")
    await watched.process.start()
    await watched.reaches(State.RUNNING)
    assert watched.lines == ["warming"]
    await watched.process.stop(5)


async def test_child_that_is_never_ready_fails() -> None:
    silent = (sys.executable, "-c", "import sys; sys.stdin.read()")
    watched = Watched(silent, ready_when=lambda line: False, ready_within=0.01)
    await watched.process.start()
    await watched.reaches(State.FAILED)
    assert "not ready after 0.01 seconds" in (watched.process.reason or "")
    await watched.process.stop(5)


async def test_standard_input_reaches_the_child() -> None:
    echo = "import sys; print('got', sys.stdin.readline(), flush=True); sys.stdin.read()"
    watched = Watched(
        (sys.executable, "-c", echo), stdin=b"secret\n", ready_when=lambda line: "got" in line
    )
    await watched.process.start()
    await watched.reaches(State.RUNNING)
    assert "secret" not in repr(Launch(("a",), stdin=b"secret"))
    await watched.process.stop(5)


async def test_output_lines_are_bounded() -> None:
    body = (
        "import sys; sys.stderr.write('x' * 1_000_000 + '\\nshort\\n'); sys.stderr.flush();"
        "print('up', flush=True); sys.stdout.write('no end of line')"
    )
    watched = Watched((sys.executable, "-c", body), ready_when=lambda line: line == "up")
    await watched.process.start()
    await watched.reaches(State.FAILED)
    longest, short, *_ = [line for line in watched.lines if line != "no end of line"]
    assert longest == "x" * LINE_LIMIT + " […]"
    assert short == "short"
    assert "no end of line" in watched.lines
    await watched.process.stop(5)


@pytest.mark.skipif(sys.platform == "win32", reason="a process group is a Unix notion")
async def test_child_dies_with_killed_parent(witnesses: Witnesses) -> None:
    child = witnesses.script(
        """
        from aiserver.kit.process import die_with_parent
        die_with_parent()
        w = announce('child')
        time.sleep(60)
        """
    )
    parent = witnesses.script(
        f"""
        import asyncio
        from aiserver.kit.process import Launch, Supervised
        async def main():
            await Supervised(lambda: Launch({child!r}), on_line=print).start()
            await asyncio.sleep(60)
        w = announce('parent')
        asyncio.run(main())
        """
    )
    process = await asyncio.create_subprocess_exec(*parent)
    arrivals = {name: reader for name, _, reader in [await witnesses.arrival() for _ in range(2)]}
    process.kill()
    await process.wait()
    await gone(arrivals["child"])


async def test_child_ends_with_its_standard_input(witnesses: Witnesses) -> None:
    process = await asyncio.create_subprocess_exec(
        *witnesses.script(
            """
            import threading
            from aiserver.kit import process
            threading.Thread(target=process._exit_at_end_of_stdin, daemon=True).start()
            w = announce('child')
            time.sleep(60)
            """
        ),
        stdin=asyncio.subprocess.PIPE,
    )
    *_, reader = await witnesses.arrival()
    assert process.stdin is not None
    process.stdin.close()
    await gone(reader)
    assert await process.wait() == 1


def test_the_fast_loop_behaves_the_same() -> None:
    async def crash_then_stop() -> None:
        body = "import sys; print(sys.stdin.readline(), flush=True); sys.stdin.read()"
        watched = Watched(
            (sys.executable, "-c", body), stdin=b"up\n", ready_when=lambda line: line == "up"
        )
        await watched.process.start()
        await watched.reaches(State.RUNNING)
        assert watched.process.pid is not None
        watched.states.clear()
        os.killpg(watched.process.pid, signal.SIGKILL)
        await watched.reaches(State.RUNNING)
        await watched.process.stop(5)
        assert watched.states[-1] is State.STOPPED

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(crash_then_stop())

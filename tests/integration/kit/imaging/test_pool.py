"""The children: replaced when they end, bounded in number, time and memory, and in line."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from aiserver.kit.imaging.errors import (
    ImageRefused,
    ImagingBusy,
    ImagingFailed,
    ImagingTimedOut,
)
from aiserver.kit.imaging.jobs import Convert, Inspect, Limits, Variant
from aiserver.kit.imaging.pool import ImagingPool
from aiserver.kit.process import Backoff
from pictures import Save, quarters

Begin = Callable[..., Awaitable[ImagingPool]]


@pytest.fixture
async def begin() -> AsyncGenerator[Begin]:
    """Starts a pool of one child, which is stopped when the test ends."""
    opened: list[ImagingPool] = []

    async def started(**options: Any) -> ImagingPool:
        given: dict[str, Any] = {"children": 1, **options}
        pool = ImagingPool(**given)
        await pool.start()
        opened.append(pool)
        return pool

    yield started
    for pool in opened:
        await pool.stop()


@pytest.fixture
def inspect(save: Save) -> Inspect:
    return Inspect(source=save("a.png", quarters()))


async def frozen(pool: ImagingPool, inspect: Inspect) -> int:
    """The only child, up and stopped by a signal: it hangs until it is continued."""
    await pool.run(inspect, timeout=20)
    (pid,) = pool.pids
    os.kill(pid, signal.SIGSTOP)
    return pid


async def begun(pool: ImagingPool, *jobs: Inspect, timeout: float = 30) -> list[asyncio.Task[Any]]:
    """The jobs as tasks: the first ones run, the others wait."""
    tasks = [asyncio.create_task(pool.run(job, timeout=timeout)) for job in jobs]
    while pool.running + pool.waiting < len(jobs):
        await asyncio.sleep(0)
    return tasks


async def gone(pid: int) -> None:
    async with asyncio.timeout(10):
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.001)


async def test_children_begin_with_the_first_job_and_stay(begin: Begin, inspect: Inspect) -> None:
    pool = await begin()
    assert pool.pids == []
    await pool.run(inspect, timeout=20)
    first = pool.pids
    await pool.run(inspect, timeout=20)
    assert pool.pids == first
    await pool.stop()
    assert pool.pids == []
    await gone(first[0])


async def test_killed_child_fails_only_its_job(begin: Begin, inspect: Inspect) -> None:
    pool = await begin()
    pid = await frozen(pool, inspect)
    lost, waits = await begun(pool, inspect, inspect)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ImagingFailed, match="server failed"):
        await lost
    assert (await waits).width == 80
    assert pool.pids != [pid]


async def test_child_that_died_at_rest_is_replaced(begin: Begin, inspect: Inspect) -> None:
    pool = await begin()
    await pool.run(inspect, timeout=20)
    (pid,) = pool.pids
    os.kill(pid, signal.SIGKILL)
    await gone(pid)
    assert (await pool.run(inspect, timeout=20)).width == 80


async def test_hanging_child_is_ended_at_the_timeout(begin: Begin, inspect: Inspect) -> None:
    pool = await begin()
    pid = await frozen(pool, inspect)
    with pytest.raises(ImagingTimedOut):
        await pool.run(inspect, timeout=0.01)
    await gone(pid)
    assert (await pool.run(inspect, timeout=20)).width == 80


async def test_cancelled_job_ends_its_child(begin: Begin, inspect: Inspect) -> None:
    pool = await begin()
    pid = await frozen(pool, inspect)
    (task,) = await begun(pool, inspect)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await gone(pid)
    assert pool.running == 0
    assert (await pool.run(inspect, timeout=20)).width == 80


async def test_cancelled_waiter_leaves_the_line(begin: Begin, inspect: Inspect) -> None:
    pool = await begin(queue=1)
    pid = await frozen(pool, inspect)
    running, waits = await begun(pool, inspect, inspect)
    waits.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waits
    assert pool.waiting == 0
    (again,) = [asyncio.create_task(pool.run(inspect, timeout=20))]
    os.kill(pid, signal.SIGCONT)
    assert (await running, await again)[1].width == 80


async def test_waiter_cancelled_at_its_turn_passes_it_on(begin: Begin, inspect: Inspect) -> None:
    pool = await begin()
    pid = await frozen(pool, inspect)
    running, first, second = await begun(pool, inspect, inspect, inspect)
    running.add_done_callback(lambda _: first.cancel())
    os.kill(pid, signal.SIGCONT)
    done = await asyncio.gather(running, first, second, return_exceptions=True)
    assert not isinstance(done[2], BaseException)
    assert (pool.running, pool.waiting) == (0, 0)


async def test_full_line_is_busy_at_its_bound(begin: Begin, inspect: Inspect) -> None:
    pool = await begin(queue=2)
    pid = await frozen(pool, inspect)
    tasks = await begun(pool, inspect, inspect, inspect)
    with pytest.raises(ImagingBusy) as busy:
        await pool.run(inspect, timeout=20)
    assert busy.value.retry_after > 0
    os.kill(pid, signal.SIGCONT)
    assert [result.width for result in await asyncio.gather(*tasks)] == [80] * 3


async def test_wait_in_line_is_bounded(begin: Begin, inspect: Inspect) -> None:
    pool = await begin(wait=0.01)
    pid = await frozen(pool, inspect)
    running, waits = await begun(pool, inspect, inspect)
    with pytest.raises(ImagingBusy):
        await waits
    os.kill(pid, signal.SIGCONT)
    assert (await running).width == 80


async def test_no_more_children_than_allowed(begin: Begin, inspect: Inspect) -> None:
    pool = await begin(children=2)
    await asyncio.gather(*(pool.run(inspect, timeout=20) for _ in range(12)))
    assert len(pool.pids) == 2
    assert (pool.running, pool.waiting) == (0, 0)


async def test_child_is_replaced_after_its_jobs(begin: Begin, inspect: Inspect) -> None:
    pool = await begin(recycle_after=2)
    seen: list[int] = []
    for _ in range(3):
        await pool.run(inspect, timeout=20)
        seen += pool.pids
    assert len(set(seen)) == 2


async def test_grown_child_is_replaced(begin: Begin, inspect: Inspect) -> None:
    pool = await begin(recycle_bytes=1)
    await pool.run(inspect, timeout=20)
    assert pool.pids == []
    assert (await pool.run(inspect, timeout=20)).width == 80


async def test_refused_pictures_do_not_cost_the_child(
    begin: Begin, save: Save, inspect: Inspect
) -> None:
    pool = await begin()
    await pool.run(inspect, timeout=20)
    before = pool.pids
    for _ in range(5):
        with pytest.raises(ImageRefused):
            await pool.run(Inspect(source=save("bad.png", b"\x89PNG\r\n\x1a\n")), timeout=20)
    assert pool.pids == before


async def test_memory_is_limited(begin: Begin, save: Save, out: str, inspect: Inspect) -> None:
    pool = await begin(limits=Limits(memory_bytes=160 * 2**20))
    large = save("large.png", Image.linear_gradient("L").resize((6000, 6000)).convert("RGB"))
    with pytest.raises(ImagingFailed):
        await pool.run(Variant(source=large, result=out, rotate=90), timeout=60)
    assert (await pool.run(inspect, timeout=20)).width == 80


async def test_processor_time_is_limited(
    begin: Begin, save: Save, out: str, inspect: Inspect
) -> None:
    pool = await begin(limits=Limits(cpu_seconds=0))
    large = save("large.png", Image.new("RGB", (4000, 4000)))
    with pytest.raises(ImagingTimedOut):
        await pool.run(Variant(source=large, result=out, blur=100.0), timeout=60)
    assert (await pool.run(inspect, timeout=20)).width == 80


async def test_processor_time_begins_anew_with_each_job(begin: Begin, save: Save, out: str) -> None:
    pool = await begin(limits=Limits(cpu_seconds=1))
    source = save("a.png", Image.effect_noise((1500, 1500), 50))
    for at in range(4):
        job = Convert(source=source, result=f"{out}{at}", format="webp")
        await pool.run(job, timeout=60)


async def test_size_of_results_is_limited(
    begin: Begin, save: Save, out: str, inspect: Inspect
) -> None:
    pool = await begin(limits=Limits(result_bytes=5000))
    source = save("noise.png", Image.effect_noise((300, 300), 90))
    for kind in ("jpg", "png", "gif", "bmp", "tiff", "webp", "avif"):
        with pytest.raises(ImageRefused, match="ask for a smaller one") as refused:
            await pool.run(
                Convert(source=source, result=out, format=kind, quality=95),  # type: ignore[arg-type]
                timeout=20,
            )
        assert refused.value.code == "ResultTooLarge"
        assert not Path(out).exists()
    assert (await pool.run(inspect, timeout=20)).width == 80


async def test_missing_file_is_not_the_callers_fault(begin: Begin, tmp_path: Path) -> None:
    pool = await begin()
    with pytest.raises(ImagingFailed):
        await pool.run(Inspect(source=str(tmp_path / "nothing")), timeout=20)
    assert len(pool.pids) == 1


async def test_children_that_cannot_start_fail_their_jobs(
    begin: Begin, inspect: Inspect, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = await begin(backoff=Backoff(first=0.001, cap=0.001))
    for broken in ("/no/such/python", "/bin/true", "/bin/false"):
        with monkeypatch.context() as patched:
            patched.setattr(sys, "executable", broken)
            with pytest.raises(ImagingFailed, match="its log says why"):
                await pool.run(inspect, timeout=20)
    assert (await pool.run(inspect, timeout=20)).width == 80


@pytest.mark.parametrize(
    "answer",
    [
        "head -c 200000 /dev/zero | tr '\\0' '\\377' >&0",
        "printf '\\0\\0\\0\\1x' >&0",
        "printf '\\0' >&0; echo broken >&2",
    ],
)
async def test_child_that_answers_nonsense_is_ended(
    begin: Begin,
    inspect: Inspect,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
) -> None:
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\n{answer}\nsleep 0.1\n")
    script.chmod(0o700)
    pool = await begin()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", str(script))
        with pytest.raises(ImagingFailed, match="its log says why"):
            await pool.run(inspect, timeout=20)
    assert (await pool.run(inspect, timeout=20)).width == 80


async def test_child_that_does_not_come_up_is_ended(begin: Begin, inspect: Inspect) -> None:
    pool = await begin(start_within=0.0)
    with pytest.raises(ImagingFailed, match="its log says why"):
        await pool.run(inspect, timeout=20)
    assert (pool.running, pool.waiting) == (0, 0)


async def test_crashes_in_a_row_wait_before_the_next_start(
    begin: Begin, inspect: Inspect, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = await begin(backoff=Backoff(first=3600, cap=3600))
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", "/bin/false")
        for _ in range(2):
            with pytest.raises(ImagingFailed):
                await pool.run(inspect, timeout=20)
    (held,) = await begun(pool, inspect)
    await asyncio.sleep(0)
    assert pool.pids == []
    await pool.stop()
    with pytest.raises(ImagingFailed, match="stopping"):
        await held


async def test_stop_fails_what_runs_and_waits(begin: Begin, inspect: Inspect) -> None:
    pool = await begin()
    pid = await frozen(pool, inspect)
    tasks = await begun(pool, inspect, inspect)
    await pool.stop()
    for task in tasks:
        with pytest.raises(ImagingFailed, match="stopping"):
            await task
    await gone(pid)
    with pytest.raises(ImagingFailed, match="stopping"):
        await pool.run(inspect, timeout=20)
    await pool.start()
    assert (await pool.run(inspect, timeout=20)).width == 80


async def test_stop_during_a_start_leaves_nothing(begin: Begin, inspect: Inspect) -> None:
    pool = await begin()
    (task,) = await begun(pool, inspect)
    while not pool.pids:
        await asyncio.sleep(0)
    (pid,) = pool.pids
    await pool.stop()
    with pytest.raises(ImagingFailed, match="stopping"):
        await task
    await gone(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
async def test_child_is_limited_and_knows_no_secrets(
    begin: Begin, inspect: Inspect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTH_SECRET", "p@ssw0rd")
    pool = await begin(limits=Limits(memory_bytes=2**30, result_bytes=2**20, open_files=50))
    await pool.run(inspect, timeout=20)
    (pid,) = pool.pids
    assert b"p@ssw0rd" not in Path(f"/proc/{pid}/environ").read_bytes()
    assert os.getpgid(pid) == pid
    rows = [line.split() for line in Path(f"/proc/{pid}/limits").read_text().splitlines()]
    found = {" ".join(row[:-3]): row[-3:-1] for row in rows if len(row) > 4}
    assert found["Max address space"] == [str(2**30)] * 2
    assert found["Max file size"] == [str(2**20)] * 2
    assert found["Max open files"] == ["50", "50"]
    assert found["Max core file size"] == ["0", "0"]


async def test_child_ends_with_its_server(inspect: Inspect) -> None:
    script = f"""
import asyncio
from aiserver.kit.imaging.jobs import Inspect
from aiserver.kit.imaging.pool import ImagingPool
async def main():
    pool = ImagingPool(children=1)
    await pool.start()
    await pool.run(Inspect(source={inspect.source!r}), timeout=20)
    print(pool.pids[0], flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE
    )
    assert server.stdout is not None
    pid = int(await server.stdout.readline())
    server.kill()
    await server.wait()
    await gone(pid)


async def test_server_process_never_loads_the_libraries() -> None:
    script = "import sys, aiserver.kit.imaging.pool; print({'pyvips', 'PIL'} & set(sys.modules))"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    assert said == b"set()\n"

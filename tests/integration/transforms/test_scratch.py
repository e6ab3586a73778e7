"""Folders of running transforms: bounded to their job, swept after a crash."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from aiserver.contract.errors import StorageUnavailable
from aiserver.transforms.scratch import Scratch, write
from fakes.uploads import FakeUpload

HOLD = """
import sys
from pathlib import Path
from aiserver.transforms.scratch import Scratch
with Scratch.opened(Path(sys.argv[1])) as scratch:
    (scratch._folder / "half").write_bytes(b"half")
    print("held", flush=True)
    sys.stdin.read()
"""


def holding(folder: Path) -> subprocess.Popen[str]:
    """Another process that uses the same folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def halves(folder: Path) -> int:
    return len(list(folder.glob("*/half")))


async def test_folder_goes_with_its_job_however_it_ends(tmp_path: Path) -> None:
    with Scratch.opened(tmp_path) as scratch:
        async with scratch.folder() as kept:
            await write(FakeUpload(b"content"), kept / "source")
            assert (kept / "source").read_bytes() == b"content"
        assert not kept.exists()

        async def work() -> None:
            async with scratch.folder() as folder:
                (folder / "half").write_bytes(b"x")
                begun.set_result(folder)
                await asyncio.Event().wait()

        begun: asyncio.Future[Path] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(work())
        folder = await begun
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not folder.exists()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


async def test_file_goes_with_its_block_unless_it_was_taken(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    with Scratch.opened(tmp_path / "scratch") as scratch:
        async with scratch.file() as left, scratch.file() as path:
            assert not path.exists()
            left.write_bytes(b"half")
            path.write_bytes(b"whole")
            path.rename(taken)
        assert not left.exists()
    assert taken.read_bytes() == b"whole"
    with pytest.raises(StorageUnavailable):
        async with scratch.file():
            pass


def test_leftovers_of_a_killed_process_are_swept_and_no_others(tmp_path: Path) -> None:
    alive, dead = holding(tmp_path), holding(tmp_path)
    try:
        assert halves(tmp_path) == 2
        dead.kill()
        dead.wait()
        with Scratch.opened(tmp_path):
            assert halves(tmp_path) == 1
    finally:
        for process in (alive, dead):
            process.kill()
            process.communicate()
    with Scratch.opened(tmp_path):
        assert halves(tmp_path) == 0


class KeptUpload(FakeUpload):
    """One that lies on the disk."""

    def __init__(self, content: bytes, path: Path | None) -> None:
        super().__init__(content)
        self.path = path


async def test_kept_upload_is_not_copied_on_the_same_disk(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_bytes(b"content")
    await write(KeptUpload(b"unread", kept), tmp_path / "source")
    assert (tmp_path / "source").stat().st_ino == kept.stat().st_ino
    kept.unlink()
    assert (tmp_path / "source").read_bytes() == b"content"


@pytest.mark.parametrize("lies", ["nowhere", "gone", "behind a link", "on another disk"])
async def test_other_kept_uploads_are_copied(tmp_path: Path, lies: str) -> None:
    path = None if lies == "nowhere" else tmp_path / "kept"
    if lies == "behind a link":
        (tmp_path / "kept").symlink_to("/etc/hostname")
    if lies == "on another disk":
        path = Path("/proc/self/status")
    await write(KeptUpload(b"content", path), tmp_path / "source")
    assert (tmp_path / "source").read_bytes() == b"content"


async def test_upload_that_does_not_fit_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageUnavailable, match="disk for work under way is full"):
        await write(FakeUpload(b"content"), Path("/dev/full"))

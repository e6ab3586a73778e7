"""The history of calls: taken in without waiting, written beside, read by the month."""

import asyncio
from pathlib import Path
from typing import NamedTuple

from aiserver.contract.trace import Trace
from aiserver.history.archive import Archive
from aiserver.history.files import FileArchive
from aiserver.history.reader import Reader
from aiserver.history.ring import DISCARDED, WRITTEN, Progress, Ring
from aiserver.history.rows import Redact
from aiserver.history.writer import Writer
from aiserver.kit import log
from aiserver.kit.clock import Clock

# Bytes of one prompt or answer that are kept, where they are kept at all.
MOST_KEPT = 64 * 1024
_BOUND = 20_000
_ROOM = 64 * 1024 * 1024
_STOP_SECONDS = 10.0
_log = log.get("history")


class State(NamedTuple):
    """Calls: held back, dropped, written, without their prompt for want of room; bytes by month.

    `lost_at_last_stop` is None until it is known. `broken` counts files that were set aside.
    """

    held: int
    dropped: int
    written: int
    cut: int
    lost_at_last_stop: int | None
    broken: int
    problem: str | None
    sizes: dict[str, int]


class History:
    """Keeps calls in files in `folder`, or in another archive; `keep_months` 0 keeps all.

    The folder has the counters of this process: of several on one machine each needs a `worker`
    number of its own, and an archive that they can share.
    """

    def __init__(
        self,
        folder: Path,
        clock: Clock,
        redact: Redact,
        *,
        archive: Archive | None = None,
        worker: int = 1,
        keep_months: int = 0,
        bound: int = _BOUND,
        longest: int = MOST_KEPT,
        room: int = _ROOM,
    ) -> None:
        self._archive = archive or FileArchive(folder)
        self._progress = Progress(folder / ("progress" if worker == 1 else f"progress-{worker}"))
        self._ring = Ring(self._progress.slots, bound=bound, room=room, longest=longest)
        self._wake_at = max(bound // 4, 1)
        self._writer = Writer(
            self._ring,
            self._progress,
            self._archive,
            clock=clock,
            redact=redact,
            keep_months=keep_months,
        )
        self.reader = Reader(self._archive)

    def start(self) -> None:
        self._writer.start()

    def record(self, trace: Trace) -> None:
        """Hands over a call that has ended, from the loop's thread; nothing may fill it any more.

        Never waits and never fails; a full ring drops the call and counts it.
        """
        if self._ring.add(trace) and len(self._ring) == self._wake_at:
            self._writer.wake()

    def wake(self) -> None:
        """Has what is held written at once instead of at the next turn."""
        self._writer.wake()

    async def close(self) -> None:
        """Writes what is held, for ten seconds at most, and ends the threads."""
        self._ring.shut()
        ended = await asyncio.to_thread(self._writer.stop, _STOP_SECONDS)
        if self._ring or self._writer.waiting:
            held = len(self._ring) + self._writer.waiting
            _log.error("history_not_written", calls=held, problem=self._writer.problem)
        await asyncio.to_thread(self.reader.close)
        if ended:
            self._progress.close()

    @property
    def held(self) -> int:
        return len(self._ring) + self._writer.waiting

    @property
    def dropped(self) -> int:
        return self._ring.dropped + self._progress.slots[DISCARDED]

    @property
    def written(self) -> int:
        """By this process."""
        return self._progress.slots[WRITTEN]

    @property
    def lost_at_last_stop(self) -> int | None:
        """Calls that a kill took with it; None until it is known."""
        return self._writer.lost_at_last_stop

    async def state(self) -> State:
        """For the administrator's pages. Raises TooBusy, Unavailable or StorageError."""
        sizes = await self.reader.run(lambda shelf: shelf.sizes())
        return State(
            held=self.held,
            dropped=self.dropped,
            written=self.written,
            cut=self._ring.cut,
            lost_at_last_stop=self._writer.lost_at_last_stop,
            broken=self._archive.broken,
            problem=self._writer.problem,
            sizes=sizes,
        )

    def problems(self) -> dict[str, str]:
        """For the health page; empty while calls are written."""
        return {"history": self._writer.problem} if self._writer.problem else {}

"""The one thread that writes history: from the ring into the archive of its months."""

import threading
from collections.abc import Callable, Iterator

from aiserver.contract.trace import Trace
from aiserver.history.archive import Archive, Content, NewerFile, Page, month_of, months_before
from aiserver.history.ring import DISCARDED, WRITTEN, LastRun, Progress, Ring
from aiserver.history.rollups import Tally
from aiserver.history.rows import Redact, row_of
from aiserver.kit import log
from aiserver.kit.clock import Clock
from aiserver.kit.db import DriverError, IntegrityError, Row, StorageError

_EVERY_SECONDS = 0.2
_AGAIN_SECONDS = 1.0
_ROWS_A_BATCH = 4096
_ROWS_A_CHUNK = 64
_log = log.get("history")


class Writer:
    """Empties the ring five times a second and when it fills; what cannot be written waits.

    `lost_at_last_stop` are calls that the run before recorded and could not write, None until it
    is known.
    """

    def __init__(
        self,
        ring: Ring,
        progress: Progress,
        archive: Archive,
        *,
        clock: Clock,
        redact: Redact,
        keep_months: int,
        every: float = _EVERY_SECONDS,
    ) -> None:
        self._ring = ring
        self._progress = progress
        self._archive = archive
        self._clock = clock
        self._redact = redact
        self._keep_months = keep_months
        self._every = every
        self._waiting: list[Trace] = []
        # Of a batch that failed: what the archive has of it was written all the same.
        self._tried: frozenset[int] = frozenset()
        self._ending = False
        self._wake = threading.Event()
        self._month = ""
        self._drops = (False, 0)
        self._thread = threading.Thread(target=self._run, name="history", daemon=True)
        self.problem: str | None = None
        self.lost_at_last_stop: int | None = None

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        self._wake.set()

    def stop(self, seconds: float) -> bool:
        """Writes what is there and ends; False when that takes longer."""
        self._ending = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        self._guarded(self._archive.prepare)
        while not self._ending:
            if self.lost_at_last_stop is None:
                self._guarded(self._look_back)
            self._wake.wait(_AGAIN_SECONDS if self.problem else self._every)
            self._wake.clear()
            self._guarded(self._keep)
            self._guarded(self._drain)
            self._tell_drops()
        self._guarded(self._drain)
        self._archive.close()

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except (StorageError, DriverError, OSError) as error:
            self._troubled(f"History cannot be written: {error}.")
        except Exception:  # the thread must outlive whatever one call held
            _log.exception("history_failed")
            self._discard(self._waiting)

    def _look_back(self) -> None:
        """Counts what the last run lost."""
        last = self._progress.last_run
        self.lost_at_last_stop = self._lost(last) if last is not None else 0
        if self.lost_at_last_stop:
            _log.warning("history_lost_at_last_stop", calls=self.lost_at_last_stop)

    def _lost(self, last: LastRun) -> int:
        # The archive knows what a killed process committed last; the counter what they lost since.
        written = max(last.written, self._archive.written_by(last.run))
        return max(last.recorded - last.discarded - written, 0)

    def _keep(self) -> None:
        """Once a month begins, deletes the files of months that are not kept any more."""
        month = month_of(int(self._clock.now().timestamp() * 1000))
        if month == self._month:
            return
        if self._keep_months > 0:
            oldest = months_before(month, self._keep_months - 1)
            if dropped := self._archive.drop_before(oldest):
                _log.info("history_months_dropped", months=dropped)
        self._month = month

    def _drain(self) -> None:
        # What comes meanwhile waits for the next round, so that batches are large under load.
        left = len(self._ring)
        while self._waiting or left:
            if not self._waiting:
                self._waiting = self._ring.take(min(left, _ROWS_A_BATCH))
                left -= len(self._waiting)
            for month, calls in _by_month(self._waiting):
                self._store(month, calls)
                # What is written must not wait again when another month fails.
                rest = calls is not self._waiting
                self._waiting = [c for c in self._waiting if _month(c) != month] if rest else []

    def _store(self, month: str, calls: list[Trace]) -> None:
        try:
            self._write(month, calls)
        except NewerFile as error:
            self._troubled(str(error))
            self._discard(calls)
        except (DriverError, StorageError) as error:
            self._tried = frozenset(call.id for call in calls)
            if not self._archive.mended(month, error):
                raise
            self._write(month, calls)

    def _write(self, month: str, calls: list[Trace]) -> None:
        with self._archive.page(month) as page:
            written = self._insert(page, calls)
        self._tried = frozenset()
        self._progress.slots[WRITTEN] += written
        self._progress.slots[DISCARDED] += len(calls) - written
        self._troubled(None)

    def _insert(self, page: Page, calls: list[Trace]) -> int:
        """How many of them the archive has once the page is committed."""
        tally, before = Tally(), 0
        try:
            page.insert(self._chunks(calls, tally, mend=self._archive.fitting))
        except Exception as error:  # one odd call must not take its batch with it
            trouble = isinstance(error, DriverError | StorageError)
            if trouble and not isinstance(error, IntegrityError):
                raise
            page.undo()
            once = {call.id: call for call in calls}
            known = page.known(list(once))
            before = len(known & self._tried)
            calls = [c for c in once.values() if c.id not in known and self._storable(c)]
            tally = Tally()
            page.insert(self._chunks(calls, tally, mend=self._archive.plain))
        page.add(tally, run=self._progress.run, calls=len(calls))
        return before + len(calls)

    def _chunks(
        self, calls: list[Trace], tally: Tally, *, mend: Callable[[list[Row]], list[Row]]
    ) -> Iterator[tuple[list[Row], list[Content]]]:
        for start in range(0, len(calls), _ROWS_A_CHUNK):
            chunk = calls[start : start + _ROWS_A_CHUNK]
            rows = mend([row_of(call, self._redact) for call in chunk])
            yield rows, [(c.id, c.prompt, c.answer) for c in chunk if c.prompt or c.answer]
            tally.add(rows)

    def _storable(self, call: Trace) -> bool:
        try:
            Tally().add(self._archive.plain([row_of(call, self._redact)]))
        except Exception:  # whatever it holds, the next one is whole
            _log.exception("history_call_unusable", request_id=call.request_id)
            return False
        return True

    def _tell_drops(self) -> None:
        """Logs when the ring begins to drop calls, and when it has stopped."""
        (dropping, before), dropped = self._drops, self._ring.dropped
        if dropped > before and not dropping:
            _log.error("history_full", held=len(self._ring), dropped=dropped)
        elif dropped == before and dropping:
            _log.info("history_keeps_up_again", dropped=dropped)
        self._drops = (dropped > before, dropped)

    def _discard(self, calls: list[Trace]) -> None:
        self._progress.slots[DISCARDED] += len(calls)
        if calls is self._waiting:
            self._waiting = []

    def _troubled(self, problem: str | None) -> None:
        if problem is not None and self.problem is None:
            _log.error("history_not_writable", problem=problem)
        if problem is None and self.problem is not None:
            _log.info("history_writable_again", dropped=self._ring.dropped)
        self.problem = problem


def _month(call: Trace) -> str:
    return month_of(int(call.at * 1000))


def _by_month(calls: list[Trace]) -> list[tuple[str, list[Trace]]]:
    found: dict[str, list[Trace]] = {}
    first, last = _month(min(calls, key=_at)), _month(max(calls, key=_at))
    if first == last:
        return [(first, calls)]
    for call in calls:
        found.setdefault(_month(call), []).append(call)
    return sorted(found.items(), key=lambda item: item[0])


def _at(call: Trace) -> float:
    return call.at

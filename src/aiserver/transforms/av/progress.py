"""How far ffmpeg is, in percent, from what it prints as it goes."""

from collections.abc import Callable

LINE_LIMIT = 512
# The last percent is for the check of the result.
MOST = 99


class Progress:
    """Reads `-progress` lines and reports whole percents, each once and only upwards."""

    def __init__(self, length: float | None, report: Callable[[int], None]) -> None:
        """`length`: seconds that the result will play; None when nobody knows."""
        self._length = length
        self._report = report
        self._rest = b""
        self._percent = -1
        self.reached = 0.0

    def feed(self, data: bytes) -> None:
        """More of the program's output, cut anywhere."""
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[-LINE_LIMIT:]
        for line in lines:
            name, _, value = line.partition(b"=")
            if name.strip() == b"out_time_us":
                self._at(value.strip())

    def done(self) -> None:
        """The result was checked."""
        self._step(100)

    def _at(self, value: bytes) -> None:
        if not value.isdigit():
            return
        self.reached = max(self.reached, int(value) / 1_000_000)
        if self._length:
            self._step(min(MOST, int(100 * self.reached / self._length)))

    def _step(self, percent: int) -> None:
        if percent > self._percent:
            self._percent = percent
            self._report(percent)

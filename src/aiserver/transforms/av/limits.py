"""The bounds of one transform, all in one place."""

import msgspec

from aiserver.kit.limits import ProcessLimits

GIB = 1 << 30


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one transform may take and use; sizes in bytes, times in seconds.

    `side` and `pixels` bound a frame, `duration` and `frame_rate` a source, `tracks` the streams of
    a file. `threads` is per codec, 0 lets ffmpeg choose.
    """

    seconds: float = 1800.0
    cpu_seconds: int = 7200
    memory: int = 8 * GIB
    result_bytes: int = 2 * GIB
    open_files: int = 64
    side: int = 8192
    pixels: int = 7680 * 4320
    duration: float = 4 * 3600.0
    frame_rate: int = 120
    tracks: int = 32
    threads: int = 0
    probe_seconds: float = 20.0
    probe_memory: int = 2 * GIB
    probe_bytes: int = 256 * 1024
    nice: int = 5

    def for_transform(self) -> ProcessLimits:
        """What the process of ffmpeg is held to."""
        return ProcessLimits(
            memory=self.memory,
            cpu_seconds=self.cpu_seconds,
            file_size=self.result_bytes,
            open_files=self.open_files,
            nice=self.nice,
        )

    def for_probe(self) -> ProcessLimits:
        """What the process that reads a file's headers is held to; it writes nothing."""
        return ProcessLimits(
            memory=self.probe_memory,
            cpu_seconds=int(self.probe_seconds) + 1,
            file_size=0,
            open_files=self.open_files,
            nice=self.nice,
        )

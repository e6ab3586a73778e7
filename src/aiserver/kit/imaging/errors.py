"""What can go wrong with a picture, told apart by whose fault it is.

ImagingError
├─ ImageRefused    the caller's file or wish; the message says what is accepted
├─ ImagingBusy     too many jobs at once; try again after `retry_after` seconds
└─ ImagingFailed   ours: a child crashed, or the pool is stopped
   ├─ ImagingTimedOut
   └─ ImagingDiskFull
"""


class ImagingError(Exception):
    """A picture could not be worked on."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or type(self).__doc__)


class ImageRefused(ImagingError):
    """The picture, or what is asked of it, is refused; `code` names the reason for programs.

    `detail` is what the decoder said, for the log.
    """

    def __init__(self, message: str, *, code: str, detail: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.detail = detail


class ImagingBusy(ImagingError):
    """Too many pictures are being worked on; try again shortly."""

    def __init__(self, message: str | None = None, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ImagingFailed(ImagingError):
    """The picture could not be worked on because the server failed; try again."""


class ImagingTimedOut(ImagingFailed):
    """The picture took longer than the server allows; try a smaller one."""


class ImagingDiskFull(ImagingFailed):
    """The server's disk is full; nothing was changed. Try again later."""

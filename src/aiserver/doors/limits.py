"""What a client may take and send, as the operator set it."""

from aiserver import settings as s
from aiserver.doors.body import Sizes
from aiserver.doors.server import Limits


def sizes_of(settings: s.Settings) -> Sizes:
    return Sizes(settings[s.MAX_BODY], settings[s.MAX_UPLOAD], settings[s.MAX_BUFFERED])


def limits_of(settings: s.Settings) -> Limits:
    return Limits(
        headers=settings[s.MAX_HEADERS],
        header_seconds=settings[s.HEADER_TIMEOUT],
        body_seconds=settings[s.BODY_TIMEOUT],
        keep_alive_seconds=settings[s.KEEP_ALIVE],
    )

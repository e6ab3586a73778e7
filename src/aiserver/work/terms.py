"""What the operator set for queued work."""

import msgspec

from aiserver import settings as s
from aiserver.jobs.store import Bounds
from aiserver.kit.guard import Guard


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """`months` 0 keeps all; `own` are this server's own addresses."""

    bounds: Bounds
    most_running: int
    content_seconds: float
    months: int
    guard: Guard
    own: tuple[str, ...]


def terms_of(settings: s.Settings) -> Terms:
    """As the settings have them. Raises SettingError."""
    public = settings.get(s.PUBLIC_URL)
    try:
        guard = Guard(settings[s.OUTBOUND_ALLOW])
    except ValueError as error:
        raise s.SettingError(str(error)) from None
    return Terms(
        bounds=Bounds(queued=settings[s.MAX_QUEUED], queued_per_key=settings[s.MAX_QUEUED_PER_KEY]),
        most_running=max(settings[s.MAX_RUNNING_JOBS], 1),
        content_seconds=settings[s.JOB_CONTENT_TTL],
        months=settings[s.JOBS_MONTHS],
        guard=guard,
        own=(public,) if public else (),
    )

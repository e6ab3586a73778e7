"""UTC months, as the archive names them: 2026-11."""

from datetime import UTC, datetime


def month_of(at_ms: int) -> str:
    """The month of a moment."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m")


def began(month: str) -> int:
    """The first moment of a month."""
    return int(datetime(int(month[:4]), int(month[5:]), 1, tzinfo=UTC).timestamp() * 1000)

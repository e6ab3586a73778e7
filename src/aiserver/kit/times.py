"""Times as they are stored and sent: ISO 8601 in UTC with a Z."""

from datetime import UTC, datetime


def iso(moment: datetime) -> str:
    """With three digits of the second when there are any, so that text sorts as time does."""
    # Not strftime: it writes the year 1, which clients send for "never", without its zeros.
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def parse_iso(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

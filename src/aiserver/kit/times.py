"""Times as they are stored and sent: ISO 8601 in UTC with a Z."""

from datetime import UTC, datetime


def iso(moment: datetime) -> str:
    """With three digits of the second when there are any, so that text sorts as time does."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def parse_iso(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

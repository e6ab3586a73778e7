"""Times as callers write them: m:ss, hh:mm:ss with a fraction, or seconds."""

import re

from aiserver.contract.errors import InvalidRequest

EXPECTED = "Expected m:ss, hh:mm:ss(.fff) or seconds, for example 1:05, 00:01:05.250 or 65.25"
_SECONDS = re.compile(r"\d{1,6}(\.\d{1,6})?", re.ASCII)
_CLOCK = re.compile(r"(?:(\d{1,3}):)?(\d{1,3}):([0-5]\d(?:\.\d{1,6})?)", re.ASCII)


def start_seconds(text: str) -> float:
    """Seconds from the start of the file. Raises InvalidRequest."""
    return _seconds(text, "start")


def end_seconds(text: str | None) -> float | None:
    """Seconds from the start of the file; None, for no text or a negative one, is to the end."""
    if text is None or not text.strip() or text.strip().startswith("-"):
        return None
    return _seconds(text, "end")


def _seconds(text: str, which: str) -> float:
    text = text.strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    clock = _CLOCK.fullmatch(text)
    if clock is None or (clock[1] is not None and int(clock[2]) > 59):
        field = f"{which}Time"
        raise InvalidRequest(f"Invalid {which} time format. {EXPECTED}", param=field)
    return int(clock[1] or 0) * 3600 + int(clock[2]) * 60 + float(clock[3])

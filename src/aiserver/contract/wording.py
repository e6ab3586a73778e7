"""What msgspec says of a wrong value, in the words of a caller who sends JSON."""

import re
from typing import NamedTuple

_PLACE = re.compile(r" - at `\$(.*)`$")
_QUOTED = re.compile(r"`([^`]*)`")
_KINDS = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "decimal": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "datetime": "a date and time",
}


class Wrong(NamedTuple):
    """`place` inside the value, such as `[0].role`, or empty."""

    text: str
    place: str


def plainly(problem: str) -> Wrong:
    """Of the message of a ValidationError."""
    place = _PLACE.search(problem)
    text = _QUOTED.sub(_named, _PLACE.sub("", problem))
    return Wrong(f"{text[:1].lower()}{text[1:]}", place[1] if place else "")


def _named(quoted: re.Match[str]) -> str:
    """Types by what they are called outside of Python; other words in quotes, as they are."""
    kinds = quoted[1].split(" | ")
    # What may be left out is not what is asked for.
    wanted = [kind for kind in kinds if kind != "null"] or kinds
    if not all(kind in _KINDS or kind == "null" for kind in wanted):
        return f"'{quoted[1]}'"
    named = dict.fromkeys(_KINDS.get(kind, kind) for kind in wanted)
    if "a number" in named:
        named.pop("a whole number", None)
    return " or ".join(named)

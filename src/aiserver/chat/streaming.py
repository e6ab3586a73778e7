"""Server-sent events: bytes in any split become whole events, each judged before it goes on."""

from typing import Any

import msgspec

from aiserver.contract.errors import UpstreamFailed

DONE = b"data: [DONE]\n\n"
# A tool call's arguments or an image may come in one event; more than this is not a chat chunk.
MAX_EVENT = 16 * 1024 * 1024


class EventSplitter:
    """Collects bytes until an event's blank line; line ends may be LF or CRLF."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The events that are complete now, without their blank line."""
        held = self._held
        # Looked through once: an event in many pieces is not read again with each of them.
        near = held[-2:] + data if held else data
        if b"\n\n" not in near and b"\n\r\n" not in near:
            held += data
            self._check()
            return []
        buffered = bytes(held + data) if held else data
        if b"\r" in buffered:
            tail = b"\r" if buffered.endswith(b"\r") else b""
            buffered = buffered[: len(buffered) - len(tail)].replace(b"\r\n", b"\n") + tail
        *events, rest = buffered.split(b"\n\n")
        self._held = bytearray(rest)
        self._check()
        return [event.lstrip(b"\n") for event in events if event.strip()]

    def _check(self) -> None:
        if len(self._held) > MAX_EVENT:
            raise UpstreamFailed("The provider sent an event without an end.")

    @property
    def empty(self) -> bool:
        """Whether no part of an event waits for its end."""
        return not self._held

    def rest(self) -> bytes:
        """What came after the last blank line."""
        return bytes(self._held).replace(b"\r\n", b"\n").strip()


def data_of(event: bytes) -> bytes | None:
    """The event's data; None for a comment."""
    if event.startswith(b"data:") and b"\n" not in event:
        return event[5:].lstrip()
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line[:5] == b"data:"]
    return b"\n".join(lines) if lines else None


_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


def as_events(answer: bytes, *, with_usage: bool) -> list[bytes]:
    """A whole answer as the stream that the caller asked for and this upstream does not speak."""
    members = _members.decode(answer)
    choices = msgspec.json.decode(members.pop("choices"), type=list[dict[str, Any]])
    usage = members.pop("usage", None)
    members["object"] = msgspec.Raw(b'"chat.completion.chunk"')
    for choice in choices:
        message = msgspec.convert(choice.pop("message", {}), dict[str, Any])
        # Chunks tell calls apart by an index, which a whole message has no need of.
        for index, call in enumerate(message.get("tool_calls") or ()):
            call.setdefault("index", index)
        choice["delta"] = message
    events = [_event({**members, "choices": [choice]}) for choice in choices]
    if with_usage and usage is not None:
        events.append(_event({**members, "choices": [], "usage": usage}))
    return [*events, DONE]


def _event(members: object) -> bytes:
    return b"data: " + msgspec.json.encode(members) + b"\n\n"


def without_usage(data: bytes) -> bytes:
    """The chunk without its `usage`, every other member as it came."""
    members = _members.decode(data)
    members.pop("usage", None)
    return msgspec.json.encode(members)

"""Sends files: whole, in part or not again, so that no browser runs what is in them."""

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from email.utils import formatdate, parsedate_to_datetime
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import quote

from starlette.datastructures import Headers

from aiserver.contract.errors import ApiError, StorageUnavailable
from aiserver.doors.body import ClientGone, Receive
from aiserver.doors.replies import Pairs, Send, unless_gone
from aiserver.files.download import ELSEWHERE_SECONDS, Download
from aiserver.kit import log

_RANGE = re.compile(r"bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})", re.IGNORECASE)
_YEAR = 31_536_000
_SLICE = 128 * 1024
# Files whose headers are kept ready.
_REMEMBERED = 1024
# What a browser may show by itself; whatever else could hold a script or call for one.
_SHOWN = re.compile(
    r"image/(png|jpeg|gif|webp|avif|bmp|tiff|x-icon)|(audio|video)/[a-z0-9.+-]+|text/plain"
    r"|application/json"
)
_SAFETY: Pairs = [
    (b"X-Content-Type-Options", b"nosniff"),
    (b"Content-Security-Policy", b"sandbox"),
]
_CONDITIONS = ("range", "if-none-match", "if-modified-since")
_log = log.get("doors")

Fixed = tuple[tuple[bytes, bytes], ...]


class Part(NamedTuple):
    """The bytes from `start` to before `end`."""

    start: int
    end: int


async def send_file(
    file: Download, headers: Pairs, *, method: str, asked: Headers, send: Send, receive: Receive
) -> None:
    """Never more than a piece in memory; a client that hangs up ends the reading.

    Raises ApiError as long as nothing is sent.
    """
    about = [*headers, *_about_of(file)]
    if _has_it(file, asked):
        await _head(send, HTTPStatus.NOT_MODIFIED, about)
        return
    elsewhere = await _elsewhere(file) if method == "GET" else None
    if elsewhere is not None:
        await _head(send, HTTPStatus.TEMPORARY_REDIRECT, [*headers, *_to(elsewhere, file)])
        return
    try:
        part = _wanted(file, asked) if method == "GET" else None
    except ValueError:
        about.append((b"Content-Range", b"bytes */%d" % file.size))
        about.append((b"Content-Length", b"0"))
        await _head(send, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, about)
        return
    start, end = part or Part(0, file.size)
    about += _what_of(file, end - start)
    if part is not None:
        about.append((b"Content-Range", b"bytes %d-%d/%d" % (start, end - 1, file.size)))
    status = HTTPStatus.OK if part is None else HTTPStatus.PARTIAL_CONTENT
    if method == "HEAD" or start == end:
        await _head(send, status, about)
        return
    if file.content is not None:
        await _head(send, status, about, file.content[start:end])
        return
    with suppress(ClientGone):
        await unless_gone(_pump(file.read(start, end), status, about, send), receive)


def always_whole(asked: Headers) -> bool:
    """Whether this request is answered with all of a file, whatever it holds."""
    return not any(map(asked.get, _CONDITIONS))


def whole_head(file: Download) -> Pairs:
    """The headers of an answer with all of it."""
    return [*_about_of(file), *_what_of(file, file.size)]


async def _head(send: Send, status: int, about: Pairs, content: bytes = b"") -> None:
    await send({"type": "http.response.start", "status": int(status), "headers": about})
    await send({"type": "http.response.body", "body": content})


async def _pump(pieces: AsyncGenerator[bytes], status: int, about: Pairs, send: Send) -> None:
    async with aclosing(pieces):
        # The first piece before the head: a file that cannot be read is an error with a body.
        piece = await anext(pieces, b"")
        if not piece:
            raise StorageUnavailable("The bytes of this file are not at hand; try again later.")
        await send({"type": "http.response.start", "status": int(status), "headers": about})
        try:
            await _sent(send, piece)
            async for piece in pieces:
                await _sent(send, piece)
        except ApiError as error:
            # The client sees fewer bytes than it was told of, and the connection closed.
            _log.error("file_cut_short", problem=error.message)
            raise ClientGone from error
    await send({"type": "http.response.body", "body": b""})


async def _sent(send: Send, piece: bytes) -> None:
    """In slices, since what does not fit into the socket waits in a copy of its own."""
    for start in range(0, len(piece), _SLICE):
        part = piece[start : start + _SLICE]
        await send({"type": "http.response.body", "body": part, "more_body": True})


async def _elsewhere(file: Download) -> str | None:
    """An address that does no harm without the headers that this server sends with a file."""
    harmless = file.content_type.startswith(("image/", "audio/", "video/"))
    if file.elsewhere is None or file.attachment or not (harmless and _is_shown(file.content_type)):
        return None
    return await file.elsewhere()


def _to(address: str, file: Download) -> Pairs:
    """Kept by nobody else, nor for longer than the address is good."""
    kept = f"private, max-age={ELSEWHERE_SECONDS // 2}" if file.lasting else "no-store"
    return [
        (b"Location", address.encode("ascii", "replace")),
        (b"Cache-Control", kept.encode()),
        (b"Content-Length", b"0"),
    ]


def _about_of(file: Download) -> Fixed:
    return _about(file.sha256, file.modified, file.public, file.lasting, file.vary)


def _what_of(file: Download, length: int) -> Pairs:
    what = _what(file.content_type, file.name, file.attachment)
    return [*what, (b"Content-Length", b"%d" % length)]


@lru_cache(_REMEMBERED)
def _about(sha256: str, modified: int, public: bool, lasting: bool, vary: str | None) -> Fixed:
    """What is the same of an answer with bytes and without."""
    kept = f"max-age={_YEAR}, immutable" if lasting else "no-cache"
    whose = "public" if public else "private"
    return (
        (b"ETag", _tag(sha256).encode()),
        (b"Last-Modified", _date(modified).encode()),
        (b"Cache-Control", f"{whose}, {kept}".encode()),
        (b"Accept-Ranges", b"bytes"),
        *([(b"Vary", vary.encode())] if vary else []),
        *_SAFETY,
    )


@lru_cache(_REMEMBERED)
def _what(content_type: str, name: str, attachment: bool) -> Fixed:
    kind = f"{content_type}; charset=utf-8" if content_type == "text/plain" else content_type
    inline = _is_shown(content_type) and not attachment
    return (
        (b"Content-Type", kind.encode("latin-1", "replace")),
        (b"Content-Disposition", _disposition(name, inline=inline)),
    )


def _is_shown(content_type: str) -> bool:
    return _SHOWN.fullmatch(content_type) is not None


def _disposition(name: str, *, inline: bool) -> bytes:
    plain = "".join(c if " " <= c <= "~" and c not in '"\\%' else "_" for c in name)
    named = f'{"inline" if inline else "attachment"}; filename="{plain}"'
    if plain != name:
        named += f"; filename*=UTF-8''{quote(name, safe='', errors='replace')}"
    return named.encode("ascii")


def _has_it(file: Download, asked: Headers) -> bool:
    """Whether the client's own copy is this one."""
    known = asked.get("if-none-match")
    if known is not None:
        tags = {tag.strip().removeprefix("W/") for tag in known.split(",")}
        return "*" in tags or _tag(file.sha256) in tags
    since = _moment(asked.get("if-modified-since"))
    return since is not None and file.modified // 1000 <= since


def _wanted(file: Download, asked: Headers) -> Part | None:
    """The part that is asked for; None for the whole. Raises ValueError where there is none.

    Several parts at once are answered with the whole, as a server may.
    """
    found = _RANGE.fullmatch(asked.get("range", "").strip())
    if found is None or found.groups() == ("", "") or not _same(file, asked.get("if-range")):
        return None
    if found[1] == "":
        start, end = max(file.size - int(found[2]), 0), file.size
    else:
        start = int(found[1])
        last = int(found[2]) if found[2] else file.size
        if found[2] and last < start:
            return None
        end = min(last + 1, file.size)
    if start >= end:
        raise ValueError("out of range")
    return Part(start, end)


def _same(file: Download, condition: str | None) -> bool:
    """Whether If-Range lets a part be sent: it names this very file, or nothing."""
    if condition is None:
        return True
    return condition.strip() in (_tag(file.sha256), _date(file.modified))


def _tag(sha256: str) -> str:
    return f'"{sha256}"'


def _date(modified: int) -> str:
    return formatdate(modified // 1000, usegmt=True)


def _moment(text: str | None) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp() if text else None
    except (ValueError, OverflowError, TypeError):
        return None

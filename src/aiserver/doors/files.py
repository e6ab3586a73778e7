"""Sends files: whole, in part or not again, so that no browser runs what is in them."""

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from email.utils import formatdate, parsedate_to_datetime
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import quote

from starlette.datastructures import Headers

from aiserver.contract.errors import ApiError, StorageUnavailable
from aiserver.doors.body import ClientGone, Receive
from aiserver.doors.replies import Pairs, Send, unless_gone
from aiserver.files.download import Download
from aiserver.kit import log

_RANGE = re.compile(r"bytes\s*=\s*(\d{0,18})\s*-\s*(\d{0,18})", re.IGNORECASE)
_YEAR = 31_536_000
_SLICE = 128 * 1024
# What a browser may show by itself; whatever else could hold a script or call for one.
_SHOWN = re.compile(
    r"image/(png|jpeg|gif|webp|avif|bmp|tiff|x-icon)|(audio|video)/[a-z0-9.+-]+|text/plain"
    r"|application/json"
)
_SAFETY: Pairs = [
    (b"X-Content-Type-Options", b"nosniff"),
    (b"Content-Security-Policy", b"sandbox"),
]
_log = log.get("doors")


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
    about = [*headers, *_about(file)]
    if _has_it(file, asked):
        await _head(send, HTTPStatus.NOT_MODIFIED, about)
        return
    try:
        part = _wanted(file, asked) if method == "GET" else None
    except ValueError:
        about.append((b"Content-Range", b"bytes */%d" % file.size))
        about.append((b"Content-Length", b"0"))
        await _head(send, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, about)
        return
    start, end = part or Part(0, file.size)
    about += [*_what(file), (b"Content-Length", b"%d" % (end - start))]
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


def _about(file: Download) -> Pairs:
    """What is the same of an answer with bytes and without."""
    kept = f"max-age={_YEAR}, immutable" if file.lasting else "no-cache"
    whose = "public" if file.public else "private"
    return [
        (b"ETag", _tag(file).encode()),
        (b"Last-Modified", _modified(file).encode()),
        (b"Cache-Control", f"{whose}, {kept}".encode()),
        (b"Accept-Ranges", b"bytes"),
        *([(b"Vary", file.vary.encode())] if file.vary else []),
        *_SAFETY,
    ]


def _what(file: Download) -> Pairs:
    shown = _SHOWN.fullmatch(file.content_type) is not None
    kind = f"{file.content_type}; charset=utf-8" if file.content_type == "text/plain" else None
    return [
        (b"Content-Type", (kind or file.content_type).encode("latin-1", "replace")),
        (b"Content-Disposition", _disposition(file, inline=shown and not file.attachment)),
    ]


def _disposition(file: Download, *, inline: bool) -> bytes:
    plain = "".join(c if " " <= c <= "~" and c not in '"\\%' else "_" for c in file.name)
    named = f'{"inline" if inline else "attachment"}; filename="{plain}"'
    if plain != file.name:
        named += f"; filename*=UTF-8''{quote(file.name, safe='', errors='replace')}"
    return named.encode("ascii")


def _has_it(file: Download, asked: Headers) -> bool:
    """Whether the client's own copy is this one."""
    known = asked.get("if-none-match")
    if known is not None:
        tags = {tag.strip().removeprefix("W/") for tag in known.split(",")}
        return "*" in tags or _tag(file) in tags
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
    return condition.strip() in (_tag(file), _modified(file))


def _tag(file: Download) -> str:
    return f'"{file.sha256}"'


def _modified(file: Download) -> str:
    return formatdate(file.modified // 1000, usegmt=True)


def _moment(text: str | None) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp() if text else None
    except (ValueError, OverflowError, TypeError):
        return None

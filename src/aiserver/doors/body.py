"""Reads a request's body within its bounds: values into memory, files to disk."""

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from contextlib import aclosing, asynccontextmanager
from email.errors import MessageError
from email.header import decode_header, make_header
from tempfile import SpooledTemporaryFile
from threading import Lock
from typing import Any, BinaryIO, cast
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from aiserver.contract.errors import (
    BodyTooLarge,
    InvalidRequest,
    MalformedBody,
    StorageUnavailable,
    Unavailable,
    UnsupportedMedia,
)
from aiserver.contract.uploads import BODY, REPEATED, Upload
from aiserver.doors.arriving import ArrivingFile
from aiserver.kit import log

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_FORM = "application/x-www-form-urlencoded"
_MOST_FIELDS = 1000
_EXTENDED_NAME = re.compile(rb"filename\*=([\w-]+)'[^']*'([^;\s]+)", re.IGNORECASE)
_MOST_FILES = 32
_log = log.get("doors")


class ClientGone(Exception):
    """The caller hung up before its request was complete."""


class Sizes(msgspec.Struct, frozen=True):
    """Bytes: one body in memory, one upload, all bodies in memory together."""

    body: int
    upload: int
    buffered: int


class Body(msgspec.Struct):
    """What a body said: JSON members, form pairs, and files that wait on disk."""

    members: dict[str, Any] = {}
    batch: list[dict[str, Any]] | None = None
    pairs: list[tuple[str, str]] = []
    files: dict[str, Upload] = {}


class BodyReader:
    """One for the whole server, because it counts what is held in memory altogether."""

    def __init__(self, sizes: Sizes) -> None:
        self._sizes = sizes
        self.held = 0

    def room_for(self, size: int) -> bool:
        """Whether a body of so many bytes may be held in memory now."""
        return size <= self._sizes.body and self.held + size <= self._sizes.buffered

    @asynccontextmanager
    async def read(
        self, headers: Headers, receive: Receive, *, files: bool = True
    ) -> AsyncGenerator[Body]:
        """The body, until the end of the block. Raises BodyTooLarge, MalformedBody, Unavailable.

        `files`: whether uploads are expected; without it a form is no larger than another body.
        """
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise UnsupportedMedia()
        kind = headers.get("content-type", "").split(";")[0].strip().lower()
        if kind == "multipart/form-data":
            bound = (self._sizes.upload, "MAX_UPLOAD") if files else (self._sizes.body, "MAX_BODY")
            async with self._multipart(headers, receive, *bound) as body:
                yield body
            return
        _refuse_announced(headers, self._sizes.body, "MAX_BODY")
        held: list[int] = []
        try:
            raw = b"".join([chunk async for chunk in self._chunks(receive, held)])
            # curl -d says that its JSON is a form; no form starts with a brace.
            is_form = kind == _FORM and not raw.lstrip().startswith(b"{")
            yield _form(raw) if is_form else _json(raw)
        finally:
            self.held -= sum(held)

    async def _chunks(self, receive: Receive, held: list[int]) -> AsyncGenerator[bytes]:
        async for chunk in _received(receive):
            held.append(len(chunk))
            self.held += len(chunk)
            if sum(held) > self._sizes.body:
                raise _too_large(self._sizes.body, "MAX_BODY")
            if self.held > self._sizes.buffered:
                raise Unavailable("The server holds as many bodies as it can.", retry_after=2)
            yield chunk

    @asynccontextmanager
    async def read_file(self, headers: Headers, receive: Receive) -> AsyncGenerator[Body]:
        """The body as one file, to be read within the block; nothing has arrived before.

        Raises BodyTooLarge, UnsupportedMedia; reading it raises BodyTooLarge, MalformedBody.
        """
        kind = headers.get("content-type", "").split(";")[0].strip().lower()
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise UnsupportedMedia()
        if kind == "multipart/form-data":
            raise UnsupportedMedia("Send the bytes of the file alone as the body, not a form.")
        bound = (self._sizes.upload, "MAX_UPLOAD")
        _refuse_announced(headers, *bound)
        announced = headers.get("content-length", "")
        async with aclosing(_whole(receive, *bound)) as chunks:
            file = ArrivingFile(
                chunks,
                content_type=kind or None,
                size=int(announced) if announced.isdigit() else None,
            )
            yield Body(files={BODY: file})

    @asynccontextmanager
    async def _multipart(
        self, headers: Headers, receive: Receive, limit: int, setting: str
    ) -> AsyncGenerator[Body]:
        _refuse_announced(headers, limit, setting)
        parser = _FormParser(
            headers,
            _bounded(receive, limit, setting),
            max_files=_MOST_FILES,
            max_fields=_MOST_FIELDS,
            max_part_size=self._sizes.body,
        )
        try:
            form = await parser.parse()
        except MultiPartException as error:
            raise MalformedBody(f"The form cannot be read: {error.message}") from None
        except (KeyError, ValueError) as error:
            raise MalformedBody("The form has no boundary or a broken part.") from error
        except OSError as error:
            raise _no_room(error) from error
        body = Body()
        try:
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    value.filename = file_name(value.filename or "")
                    if name in body.files:
                        again = f"{name}{REPEATED}{len(body.files)}"
                        body.files[again] = body.files.pop(name)
                    body.files[name] = value
                else:
                    body.pairs.append((name, value))
            yield body
        finally:
            await form.close()


class _Spool(SpooledTemporaryFile[bytes]):
    """Once closed it stays so: a thread may write when the call that it writes for is over."""

    def __init__(self, max_size: int) -> None:
        super().__init__(max_size)
        self._turn = Lock()

    def write(self, s: Any) -> int:
        with self._turn:
            if self.closed:
                raise ValueError("The call that this file is of is over.")
            return super().write(s)

    def close(self) -> None:
        with self._turn:
            super().close()


class _FormParser(MultiPartParser):
    """Takes `filename*=UTF-8''...` for a file name too, which some clients send alone.

    A form that ends inside a part is refused: what is missing may be half a file.
    """

    _inside = False

    async def parse(self) -> FormData:
        form = await super().parse()
        if self._inside:
            for file in self._files_to_close_on_error:
                file.close()
            raise MultiPartException("it ends in the middle of a part.")
        return form

    def on_part_begin(self) -> None:
        self._inside = True
        super().on_part_begin()

    def on_part_end(self) -> None:
        self._inside = False
        super().on_part_end()

    def on_headers_finished(self) -> None:
        disposition = self._current_part.content_disposition
        if disposition is not None and (found := _EXTENDED_NAME.search(disposition)):
            name = _percent_decoded(found[1], found[2]).replace('"', "'")
            plain = b'filename="%b"' % name.encode()
            self._current_part.content_disposition = _EXTENDED_NAME.sub(b"", disposition) + plain
        super().on_headers_finished()
        upload = self._current_part.file
        if upload is not None:
            self._files_to_close_on_error[-1].close()
            spool = _Spool(max_size=self.spool_max_size)
            upload.file = cast(BinaryIO, spool)
            self._files_to_close_on_error[-1] = spool


def _percent_decoded(charset: bytes, text: bytes) -> str:
    try:
        return unquote_to_bytes(text).decode(charset.decode("ascii"), "replace")
    except LookupError:
        return unquote_to_bytes(text).decode("utf-8", "replace")


def file_name(sent: str) -> str:
    """The name as a person wrote it; RFC 2047 words are read, odd bytes never an error."""
    if sent.startswith("=?") and sent.endswith("?="):
        try:
            return str(make_header(decode_header(sent)))
        except (ValueError, LookupError, MessageError):
            return sent
    return sent.encode("utf-8", "replace").decode("utf-8")


async def _received(receive: Receive) -> AsyncGenerator[bytes]:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        yield message.get("body", b"")
        more = message.get("more_body", False)


async def _bounded(receive: Receive, limit: int, setting: str) -> AsyncGenerator[bytes]:
    total = 0
    async for chunk in _received(receive):
        total += len(chunk)
        if total > limit:
            raise _too_large(limit, setting)
        yield chunk


async def _whole(receive: Receive, limit: int, setting: str) -> AsyncGenerator[bytes]:
    try:
        async for chunk in _bounded(receive, limit, setting):
            yield chunk
    except ClientGone:
        raise MalformedBody("The body broke off before its end; nothing was kept of it.") from None


def _refuse_announced(headers: Headers, limit: int, setting: str) -> None:
    announced = headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise _too_large(limit, setting)


def _no_room(error: OSError) -> StorageUnavailable:
    _log.error("upload_not_taken", problem=str(error))
    return StorageUnavailable(
        "The server cannot write uploads to its temporary folder, which may be full; nothing was "
        "kept of this call. Try again later, or ask your administrator to make room.",
        reason="storage_full",
        retry_after=60,
    )


def _too_large(limit: int, setting: str) -> BodyTooLarge:
    return BodyTooLarge(
        f"The body is larger than {limit / 1e6:g} MB; send less, or ask your administrator to "
        f"raise {setting}."
    )


def _json(raw: bytes) -> Body:
    if not raw.strip():
        return Body()
    try:
        decoded = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedBody(f"The body is not valid JSON: {error}.") from None
    except RecursionError:
        raise MalformedBody("The body is nested too deeply.") from None
    if isinstance(decoded, dict):
        return Body(members=cast("dict[str, Any]", decoded))
    if isinstance(decoded, list) and all(isinstance(i, dict) for i in cast("list[Any]", decoded)):
        return Body(batch=cast("list[dict[str, Any]]", decoded))
    raise MalformedBody("The body must be a JSON object: {...}.")


def _form(raw: bytes) -> Body:
    try:
        pairs = parse_qsl(raw.decode(), keep_blank_values=True, max_num_fields=_MOST_FIELDS)
    except (UnicodeDecodeError, ValueError):
        raise InvalidRequest(f"The form is not UTF-8 or has over {_MOST_FIELDS} fields.") from None
    return Body(pairs=pairs)

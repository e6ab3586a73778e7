"""Files of a request: which parts an operation takes, under whatever name they came."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import msgspec

from aiserver.contract.errors import FieldError, InvalidRequest
from aiserver.contract.spelling import fold


class Upload(Protocol):
    """A file that waits on disk until the call, or its job, ends."""

    @property
    def filename(self) -> str | None:
        """As it was sent: data, never a path."""
        ...

    @property
    def content_type(self) -> str | None:
        """As it was sent."""
        ...

    @property
    def size(self) -> int | None:
        """Bytes."""
        ...

    async def read(self, size: int = -1) -> bytes:
        """At most so many bytes, all that are left without a size; empty at the end."""
        ...

    async def seek(self, offset: int) -> None:
        """Goes on reading so many bytes from the start."""
        ...


@runtime_checkable
class OnDisk(Protocol):
    """An upload that is kept, where it lies on this machine's disk, to be read only, or None."""

    @property
    def path(self) -> Path | None: ...


File = TypeVar("File", bound=Upload)


class FileField(msgspec.Struct, frozen=True):
    """A part that an operation takes as a file."""

    name: str
    required: bool = True


# For an operation that takes whatever files a form has, under whatever names.
ANY_FILES = (FileField("*"),)
# For one whose body is a file itself, read by the handler as it arrives.
BODY = "body"
WHOLE_BODY = (FileField(BODY),)
REPEATED = "\0"


def assign(fields: Sequence[FileField], given: Mapping[str, File]) -> dict[str, File]:
    """Files by their declared names. Raises InvalidRequest when a required one is missing.

    Names match in any case. One file under a name of its own is the one that is missing: clients
    send it so when their user names no field.
    """
    if fields == ANY_FILES:
        return dict(given)
    found = {f.name: file for f in fields for n, file in given.items() if fold(n) == fold(f.name)}
    missing = [field for field in fields if field.required and field.name not in found]
    named = [file for name, file in given.items() if REPEATED not in name]
    spare = [file for file in named if file not in found.values()]
    if len(missing) == 1 and len(spare) == 1:
        return {**found, missing[0].name: spare[0]}
    if missing:
        errors = [_absent(field.name) for field in missing]
        raise InvalidRequest.of(errors, param=missing[0].name)
    return found


def _absent(name: str) -> FieldError:
    title = name[:1].upper() + name[1:]
    return FieldError("ArgumentNullException", title, f"No {name} file provided")

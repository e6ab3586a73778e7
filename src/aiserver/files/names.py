"""Names of files: as they were sent, made harmless, and as their bytes are kept under."""

import re
import unicodedata
from datetime import datetime

from aiserver.files.sniffing import Sniffed, is_told_by_bytes

LONGEST_NAME = 200
_LONGEST_TYPE = 100
_EXTENSION = re.compile(r"\.([A-Za-z0-9]{1,10})", re.ASCII)
_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]+/[a-z0-9!#$&^_.+-]+", re.ASCII)
# Control characters, those that turn the direction of what follows, and halves of a pair.
_UNSEEN = frozenset({"Cc", "Cf", "Cs"})
_KEPT_AT = re.compile(r"\d{4}/\d\d/\d\d/\d+/[0-9a-f]{64}(-[0-9a-f]{8})?\.[a-z0-9]{1,10}", re.ASCII)


def plain_name(sent: str | None) -> str | None:
    """The last part of a name, in letters that can be seen; its extension outlives a cut."""
    last = re.split(r"[/\\]", sent or "")[-1]
    seen = "".join(c for c in last if unicodedata.category(c) not in _UNSEEN).strip()
    if not seen.strip(". "):
        return None
    ending = seen[seen.rfind(".") :] if "." in seen else ""
    if len(seen) <= LONGEST_NAME or len(ending) > LONGEST_NAME // 2:
        return seen[:LONGEST_NAME]
    return seen[: LONGEST_NAME - len(ending)] + ending


def plain_type(sent: str | None) -> str | None:
    """A media type without its parameters; None for what is none."""
    bare = (sent or "").partition(";")[0].strip().lower()
    return bare if len(bare) <= _LONGEST_TYPE and _TYPE.fullmatch(bare) else None


def path_of(day: datetime, *, key_id: int, sha256: str, name: str | None, other: str = "") -> str:
    """Where bytes are kept: `{yyyy}/{MM}/{dd}/{keyId}/{sha256}.{ext}`; `other` tells two apart."""
    found = _EXTENSION.fullmatch(name[name.rfind(".") :]) if name and "." in name else None
    ending = found[1].lower() if found else "bin"
    told = f"{sha256}-{other}" if other else sha256
    return f"{day:%Y/%m/%d}/{key_id}/{told}.{ending}"


def is_ours(path: str) -> bool:
    """Whether bytes of this relative path can have been kept by `path_of`."""
    return _KEPT_AT.fullmatch(path) is not None


def ending_of(extension: str | None, sniffed: Sniffed) -> str:
    """`.ext` for a file of these bytes: the one that is asked for where they can be that."""
    asked = (extension or "").lstrip(".").lower()
    if asked in sniffed.extensions:
        return f".{asked}"
    could_be = sniffed.content_type == "application/octet-stream"
    if could_be and _EXTENSION.fullmatch(f".{asked}") and not is_told_by_bytes(asked):
        return f".{asked}"
    return f".{sniffed.extensions[0]}"


def upload_path(kind: str, *, key_id: int, name: str | None) -> str | None:
    """`{kind}/{keyId}/{name}` for a name as it was sent; None where it has no letters."""
    plain = plain_name(name)
    if plain is None or plain.startswith("."):
        return None
    return f"{kind}/{key_id}/{plain}"


def is_upload_path(path: str, *, kind: str, key_id: int) -> bool:
    """Whether `upload_path` can have made it."""
    name = path.rpartition("/")[2]
    return path == upload_path(kind, key_id=key_id, name=name)

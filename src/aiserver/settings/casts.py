"""Reads what an operator wrote: sizes, durations, addresses; ValueError says what to write."""

import re
from collections.abc import Callable
from urllib.parse import parse_qsl, urlsplit

MOST_WORKERS = 256
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_STORES = frozenset({"s3", "s3a", "gs", "az", "azure", "abfs", "abfss"})
_S3_OPTIONS = frozenset({"endpoint", "region", "virtual_hosted_style_request"})
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


class Secret:
    """Text that never shows itself: `reveal()` is the only way to the value."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__


def text(value: str) -> str:
    return value


def secret(value: str) -> Secret:
    return Secret(value)


def database_url(value: str) -> Secret | None:
    """A PostgreSQL's address, with its password; `sqlite` is the embedded database."""
    if value.lower() == "sqlite":
        return None
    if not value.startswith(("postgresql://", "postgres://")):
        raise ValueError("postgresql://user:password@host:5432/database or sqlite is needed")
    return Secret(value)


def storage_url(value: str) -> str:
    """A place in an object store, without credentials."""
    parts = urlsplit(value)
    if parts.scheme not in _STORES or not parts.netloc:
        raise ValueError("s3://bucket/prefix, gs://bucket/prefix or az://container is needed")
    named = {name.lower() for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
    known = _S3_OPTIONS if parts.scheme in ("s3", "s3a") else frozenset[str]()
    if parts.username is not None or not named <= known:
        raise ValueError(
            f"only {', '.join(sorted(_S3_OPTIONS))} may come after the ?, for S3 alone; "
            "credentials go into variables such as AWS_SECRET_ACCESS_KEY"
        )
    return value


def whole(value: str) -> int:
    if not re.fullmatch(r"\d{1,9}", value):
        raise ValueError("a whole number such as 8 is needed")
    return int(value)


def count(value: str) -> int:
    number = whole(value)
    if not 1 <= number <= MOST_WORKERS:
        raise ValueError(f"a number from 1 to {MOST_WORKERS} is needed")
    return number


def port(value: str) -> int:
    number = whole(value)
    if number > 65535:
        raise ValueError("a port is a number up to 65535")
    return number


def switch(value: str) -> bool:
    folded = value.lower()
    if folded in {"true", "on", "yes", "1"}:
        return True
    if folded in {"false", "off", "no", "0"}:
        return False
    raise ValueError("true or false is needed")


def size(value: str) -> int:
    """Bytes; accepts a unit: 50 MB, 2GiB, 1048576."""
    match = re.fullmatch(r"(\d{1,15})\s*([KMG]?I?B)?", value.strip().upper())
    if match is None or (match[2] or "") not in _UNITS | {"B": 1}:
        raise ValueError("a size such as 50MB or 2GB is needed")
    return int(match[1]) * (_UNITS | {"B": 1})[match[2] or ""]


def seconds(value: str) -> float:
    """Seconds; accepts a unit: 30, 30s, 10m, 2h, 7d."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)\s*([smhd]?)", value.strip())
    if match is None:
        raise ValueError("a duration such as 30s, 10m, 2h or 7d is needed")
    return float(match[1]) * _SECONDS[match[2]]


def one_of(*choices: str) -> Callable[[str], str]:
    def choose(value: str) -> str:
        if value.lower() not in choices:
            raise ValueError(f"one of {', '.join(choices)} is needed")
        return value.lower()

    choose.__name__ = " | ".join(choices)
    return choose


def web_url(value: str) -> str:
    """A base URL; no scheme means http, and 0.0.0.0 means this machine."""
    url = value if "://" in value else f"http://{value}"
    if not re.fullmatch(r"https?://[^\s/?#@]+[^\s?#]*", url) or not _port_is_possible(url):
        raise ValueError("a URL such as http://localhost:11434 is needed")
    return re.sub(r"^(https?://)0\.0\.0\.0", r"\g<1>127.0.0.1", url).rstrip("/")


def origins(value: str) -> tuple[str, ...]:
    """A comma list of scheme://host[:port]."""
    listed = tuple(part.strip() for part in value.split(",") if part.strip())
    if not all(o == "*" or re.fullmatch(r"https?://[^\s/?#,@]+/?", o) for o in listed):
        raise ValueError("origins such as https://app.example.com are needed")
    return listed


def _port_is_possible(url: str) -> bool:
    try:
        return urlsplit(url).port != 0
    except ValueError:
        return False

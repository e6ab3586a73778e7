"""Encrypts what must be kept but not read at rest: upstream keys."""

import base64
import binascii
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
_NONCE_BYTES = 12
_ID_BYTES = 4


class EncryptionKeyError(Exception):
    """An encryption key that cannot be used; the message says what to do."""


class Cipher:
    """AES-256-GCM; every sealed value starts with the id of the key that sealed it.

    The first key seals, any opens. `reread` gives the keys anew, since another process may have
    changed them.
    """

    def __init__(self, *keys: bytes, reread: Callable[[], Sequence[bytes]] | None = None) -> None:
        self._reread = reread
        self._use(keys)

    def seal(self, text: str, *, bound_to: str) -> bytes:
        """`bound_to` names the row: a value moved to another row does not open."""
        if self._reread is not None:
            self._use(self._reread())
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._known[self._newest].encrypt(nonce, text.encode(), bound_to.encode())
        return self._newest + nonce + sealed

    def open(self, sealed: bytes, *, bound_to: str) -> str:
        """Raises EncryptionKeyError for a value of another key or row, or a changed one."""
        name = sealed[:_ID_BYTES]
        if name not in self._known and self._reread is not None:
            self._use(self._reread())
        if name not in self._known:
            raise EncryptionKeyError(
                "This value was encrypted with another key. Restore ENCRYPTION_KEY or "
                "APP_DATA/encryption.key, or enter the upstream key again."
            )
        nonce = sealed[_ID_BYTES : _ID_BYTES + _NONCE_BYTES]
        try:
            opened = self._known[name].decrypt(
                nonce, sealed[_ID_BYTES + _NONCE_BYTES :], bound_to.encode()
            )
        except InvalidTag:
            raise EncryptionKeyError(
                "This encrypted value was changed; enter the upstream key again."
            ) from None
        return opened.decode()

    def _use(self, keys: Sequence[bytes]) -> None:
        if not keys or any(len(key) != KEY_BYTES for key in keys):
            raise EncryptionKeyError(
                "The encryption key must be 32 bytes: 64 hex digits or base64."
            )
        self._known = {_id(key): AESGCM(key) for key in keys}
        self._newest = _id(keys[0])


def _id(key: bytes) -> bytes:
    return hashlib.sha256(b"ai-server key id" + key).digest()[:_ID_BYTES]


def parse_key(text: str) -> bytes:
    """A key as an operator writes it: 64 hex digits or base64 of 32 bytes."""
    try:
        if len(text) == KEY_BYTES * 2:
            return bytes.fromhex(text)
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise EncryptionKeyError(
            "The encryption key must be 32 bytes: 64 hex digits or base64."
        ) from None


class KeyFile:
    """The file with the encryption key, readable only by its owner; while keys change, with two."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def keys(self) -> list[bytes]:
        """The newest first; a new one when there is no file."""
        try:
            lines = self._path.read_text(encoding="ascii").split()
        except FileNotFoundError:
            return [self._write([os.urandom(KEY_BYTES)])]
        return [parse_key(line) for line in lines]

    def add(self) -> bytes:
        """A new key before those that are there, which still open what they sealed."""
        return self._write([os.urandom(KEY_BYTES), *self.keys()])

    def keep_newest(self) -> None:
        self._write(self.keys()[:1])

    def _write(self, keys: list[bytes]) -> bytes:
        # Whole or not at all: without this file every upstream key is lost.
        fresh = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write("".join(f"{key.hex()}\n" for key in keys))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._path)
        return keys[0]

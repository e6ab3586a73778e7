"""Encrypts what must be kept but not read at rest: upstream keys."""

import base64
import binascii
import hashlib
import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
_NONCE_BYTES = 12
_ID_BYTES = 4


class EncryptionKeyError(Exception):
    """An encryption key that cannot be used; the message says what to do."""


class Cipher:
    """AES-256-GCM; every sealed value starts with the id of the key that sealed it."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise EncryptionKeyError(
                "The encryption key must be 32 bytes: 64 hex digits or base64."
            )
        self._aead = AESGCM(key)
        self._id = hashlib.sha256(b"ai-server key id" + key).digest()[:_ID_BYTES]

    def seal(self, text: str, *, bound_to: str) -> bytes:
        """`bound_to` names the row: a value moved to another row does not open."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._aead.encrypt(nonce, text.encode(), bound_to.encode())
        return self._id + nonce + sealed

    def open(self, sealed: bytes, *, bound_to: str) -> str:
        if sealed[:_ID_BYTES] != self._id:
            raise EncryptionKeyError(
                "This value was encrypted with another key. Restore ENCRYPTION_KEY or "
                "APP_DATA/encryption.key, or enter the upstream key again."
            )
        nonce = sealed[_ID_BYTES : _ID_BYTES + _NONCE_BYTES]
        try:
            opened = self._aead.decrypt(
                nonce, sealed[_ID_BYTES + _NONCE_BYTES :], bound_to.encode()
            )
        except InvalidTag:
            raise EncryptionKeyError(
                "This encrypted value was changed; enter the upstream key again."
            ) from None
        return opened.decode()


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


def load_or_create_key(path: Path) -> bytes:
    """The key in this file; a new one, readable only by the owner, when there is none."""
    try:
        return parse_key(path.read_text(encoding="ascii").strip())
    except FileNotFoundError:
        key = os.urandom(KEY_BYTES)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(key.hex() + "\n")
    return key

"""Sealed values: only the right key opens them, only in their own row."""

import stat
from pathlib import Path

import pytest

from aiserver.kit.crypto import Cipher, EncryptionKeyError, KeyFile, parse_key

KEY = bytes(range(32))


def test_sealed_value_opens_again() -> None:
    sealed = Cipher(KEY).seal("sk-upstream", bound_to="provider a")
    assert b"sk-upstream" not in sealed
    assert Cipher(KEY).open(sealed, bound_to="provider a") == "sk-upstream"


def test_same_text_never_seals_the_same() -> None:
    cipher = Cipher(KEY)
    assert cipher.seal("x", bound_to="a") != cipher.seal("x", bound_to="a")


def test_other_key_is_named_as_the_reason() -> None:
    sealed = Cipher(KEY).seal("x", bound_to="a")
    with pytest.raises(EncryptionKeyError, match="encrypted with another key"):
        Cipher(bytes(32)).open(sealed, bound_to="a")


def test_value_moved_to_another_row_stays_shut() -> None:
    sealed = Cipher(KEY).seal("x", bound_to="a")
    with pytest.raises(EncryptionKeyError, match="changed"):
        Cipher(KEY).open(sealed, bound_to="b")


def test_changed_value_stays_shut() -> None:
    sealed = bytearray(Cipher(KEY).seal("x", bound_to="a"))
    sealed[-1] ^= 1
    with pytest.raises(EncryptionKeyError, match="changed"):
        Cipher(KEY).open(bytes(sealed), bound_to="a")


@pytest.mark.parametrize("text", ["", "abc", "zz" * 32, "!" * 44, "AAAA"])
def test_unusable_key_is_explained(text: str) -> None:
    with pytest.raises(EncryptionKeyError, match="32 bytes"):
        Cipher(parse_key(text))


def test_key_reads_as_hex_and_base64() -> None:
    assert parse_key(KEY.hex()) == KEY
    assert parse_key("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=") == KEY


def test_key_file_is_made_once_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "encryption.key"
    [key] = KeyFile(path).keys()
    assert KeyFile(path).keys() == [key]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["encryption.key"]


def test_older_key_opens_until_it_is_dropped(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "encryption.key")
    cipher = Cipher(*file.keys(), reread=file.keys)
    old = cipher.seal("x", bound_to="a")
    file.add()
    assert cipher.open(old, bound_to="a") == "x"
    new = cipher.seal("x", bound_to="a")
    file.keep_newest()
    fresh = Cipher(*file.keys())
    assert fresh.open(new, bound_to="a") == "x"
    with pytest.raises(EncryptionKeyError, match="another key"):
        fresh.open(old, bound_to="a")


def test_running_cipher_learns_of_a_new_key(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "encryption.key")
    running = Cipher(*file.keys(), reread=file.keys)
    file.add()
    other = Cipher(*file.keys())
    assert running.open(other.seal("x", bound_to="a"), bound_to="a") == "x"


@pytest.mark.parametrize("text", ["", "abc\n", "zz" * 32])
def test_broken_key_file_is_explained(tmp_path: Path, text: str) -> None:
    path = tmp_path / "encryption.key"
    path.write_text(text)
    with pytest.raises(EncryptionKeyError, match="32 bytes"):
        Cipher(*KeyFile(path).keys())

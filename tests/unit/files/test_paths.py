"""What callers may write for a file, and what never becomes a path."""

import pytest

from aiserver.contract.errors import NotFound
from aiserver.files.paths import LONGEST_PATH, address, owner_in, stored_path

SHA = "0" * 64


@pytest.mark.parametrize("before", ["", "/", "/artifacts/", "artifacts/", "/files/", "/uploads/"])
def test_path_is_understood_however_it_begins(before: str) -> None:
    assert stored_path(f"{before}pub/1/a b.png") == "pub/1/a b.png"


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "/",
        "..",
        "../secret",
        "2026/11/23/1/../2/a.png",
        "2026/./a.png",
        "//etc/passwd",
        "/artifacts//etc/passwd",
        "a\\..\\b",
        "a\0b",
        "a\nb",
        "a/",
        "pub/1/a\u202egnp.exe",
        "x" * (LONGEST_PATH + 1),
    ],
)
def test_path_out_of_the_store_is_not_found(sent: str) -> None:
    with pytest.raises(NotFound, match="Artifact not found"):
        stored_path(sent)


def test_longest_path_is_still_read() -> None:
    assert stored_path("x" * LONGEST_PATH) == "x" * LONGEST_PATH


def test_dots_that_are_still_encoded_are_a_name() -> None:
    assert stored_path("pub/1/%2e%2e") == "pub/1/%2e%2e"
    assert address("pub/1/%2e%2e") == "/uploads/pub/1/%252e%252e"


def test_addresses_lead_to_where_files_are_read() -> None:
    assert address(f"2026/11/23/1/{SHA}.webp") == f"/artifacts/2026/11/23/1/{SHA}.webp"
    assert address("secure/7/é t?.png") == "/uploads/secure/7/%C3%A9%20t%3F.png"


@pytest.mark.parametrize(
    ("path", "key_id"),
    [
        (f"2026/11/23/12/{SHA}.png", 12),
        ("pub/0/a.png", 0),
        ("a/b", None),
        ("a", None),
        ("pub/x1/a.png", None),
        ("pub/99999999999999/a.png", None),
        ("pub/²/a.png", None),
    ],
)
def test_path_names_its_owner(path: str, key_id: int | None) -> None:
    assert owner_in(path) == key_id

"""Names as callers send them: data to show, and never a path."""

from datetime import UTC, datetime

import pytest

from aiserver.files.names import LONGEST_NAME, is_ours, path_of, plain_name, plain_type

DAY = datetime(2026, 11, 3, 23, 59, tzinfo=UTC)
HASH = "ab" * 32


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("té st.png", "té st.png"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\cat.png", "cat.png"),
        ("a\x00b\r\n.png", "ab.png"),
        ("gnp\u202e.exe", "gnp.exe"),
        ("..", None),
        ("dir/", None),
        ("", None),
        (None, None),
    ],
)
def test_name_is_its_last_part_in_visible_letters(sent: str | None, kept: str | None) -> None:
    assert plain_name(sent) == kept


def test_long_name_keeps_its_extension() -> None:
    name = plain_name("x" * 300 + ".jpeg")
    assert name is not None
    assert (len(name), name[-5:]) == (LONGEST_NAME, ".jpeg")
    assert plain_name("." + "x" * 300) == "." + "x" * (LONGEST_NAME - 1)


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("Image/PNG; charset=x", "image/png"),
        ("image/svg+xml", "image/svg+xml"),
        ("text/html\r\nX-Evil: 1", None),
        ("nonsense", None),
        ("a/" + "b" * 200, None),
        (None, None),
    ],
)
def test_type_is_plain_or_none(sent: str | None, kept: str | None) -> None:
    assert plain_type(sent) == kept


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("a.PNG", "png"),
        ("archive.tar.gz", "gz"),
        ("a.p/g", "bin"),
        ("a.../..", "bin"),
        ("a.verylongextension", "bin"),
        ("a.pn\u0261", "bin"),
        ("no-extension", "bin"),
        (None, "bin"),
    ],
)
def test_path_is_made_of_the_day_the_owner_and_the_bytes(name: str | None, ending: str) -> None:
    path = path_of(DAY, key_id=7, sha256=HASH, name=name)
    assert path == f"2026/11/03/7/{HASH}.{ending}"
    assert is_ours(path)


def test_only_paths_of_this_form_are_ours() -> None:
    assert is_ours(path_of(DAY, key_id=0, sha256=HASH, name="a.png", other="0123abcd"))
    for path in ("pub/1/cat.png", f"2026/11/03/7/{HASH}.png#1", "2026/11/03/7/notes.txt"):
        assert not is_ours(path)

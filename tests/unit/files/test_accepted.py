"""Which format a caller gets who did not name one."""

import pytest

from aiserver.files.accepted import format_for


@pytest.mark.parametrize(
    ("accept", "found"),
    [
        ("", "webp"),
        ("*/*", "webp"),
        ("image/*", "webp"),
        ("text/html", "webp"),
        ("application/json", "webp"),
        ("image/avif,image/webp,image/apng,image/*,*/*;q=0.8", "avif"),
        ("image/webp,image/*", "webp"),
        ("IMAGE/AVIF ; q=1", "avif"),
        ("image/avif;q=0,image/webp", "webp"),
        ("image/avif;q=0.001", "avif"),
        ("image/avif;q=nonsense,image/jpeg", "jpg"),
        ("image/jpeg", "jpg"),
        ("image/jpeg,image/png;q=0.5", "jpg"),
        ("image/jpeg,*/*", "webp"),
        ("image/jpeg,image/webp;q=0,*/*", "jpg"),
        ("x," * 10_000 + "image/avif", "webp"),
    ],
)
def test_header_decides_the_format(accept: str, found: str) -> None:
    assert format_for(accept, source="image/png") == found


def test_frames_are_kept_where_the_caller_takes_webp() -> None:
    accept = "image/avif,image/webp"
    assert format_for(accept, source="image/gif") == "webp"
    assert format_for("image/avif,image/jpeg", source="image/gif") == "avif"

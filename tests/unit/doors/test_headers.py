"""Headers found by name, and names as clients that compare letter by letter look for them."""

import pytest

from aiserver.doors.headers import RequestHeaders, canonical


@pytest.mark.parametrize(
    ("name", "written"),
    [
        (b"content-type", b"Content-Type"),
        (b"SET-COOKIE", b"Set-Cookie"),
        (b"x-request-id", b"X-Request-Id"),
        (b"etag", b"ETag"),
        (b"www-authenticate", b"WWW-Authenticate"),
    ],
)
def test_names_are_canonical(name: bytes, written: bytes) -> None:
    assert canonical(name) == written


def test_first_of_two_headers_counts() -> None:
    sent = [(b"accept", b"image/webp"), (b"accept", b"image/avif"), (b"x-name", b"J\xf6rg")]
    headers = RequestHeaders({"headers": sent})
    assert headers.get("Accept") == headers["accept"] == "image/webp"
    assert headers.getlist("accept") == ["image/webp", "image/avif"]
    assert headers.get("x-name") == "J\xf6rg"
    assert headers.get("range") is None
    assert headers.get("range", "") == ""

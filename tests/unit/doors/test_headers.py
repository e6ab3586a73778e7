"""Header names, as clients that compare letter by letter look for them."""

import pytest

from aiserver.doors.headers import canonical


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

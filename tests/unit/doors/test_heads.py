"""Heads that were read before: known by their bytes, bounded, and never mistaken for another."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiserver.doors.heads import Asked, Heads
from aiserver.keys.access import Credentials

BODY = b'{"model": "m"}'
FIELDS = [(b"host", b"here"), (b"authorization", b"Bearer ak-1")]


def request(body: bytes = BODY, *, extra: bytes = b"", length: bytes | None = None) -> bytes:
    said = b"%d" % len(body) if length is None else length
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer ak-1\r\n"
    return head + extra + b"Content-Length: " + said + b"\r\n\r\n" + body


def asked(length: int = len(BODY)) -> Asked:
    headers = [*FIELDS, (b"content-length", b"%d" % length)]
    credentials = Credentials(bearer="ak-1")
    return Asked(
        b"/v1/chat/completions", headers, dict(headers), True, credentials, "/v1/chat/completions"
    )


def knowing(*requests: bytes) -> Heads:
    heads = Heads()
    for each in requests:
        heads.keep(each, asked())
    return heads


@given(st.binary(max_size=2000))
def test_same_head_is_known_with_any_body(body: bytes) -> None:
    found = knowing(request()).find(request(body))
    assert found is not None
    known, rest = found
    assert (known.credentials.bearer, rest) == ("ak-1", body)
    assert known.measured(len(rest)).fields[b"content-length"] == b"%d" % len(body)


@pytest.mark.parametrize(
    "other",
    [
        request().replace(b"ak-1", b"ak-2"),
        request(extra=b"Origin: https://elsewhere\r\n"),
        request(extra=b"Content-Length: 14\r\n"),
        request(extra=b"Transfer-Encoding: chunked\r\n"),
        request().replace(b"\r\nHost", b"\nHost"),
        request()[:-1],
        request() + b"G",
        request() + request(),
        request(length=b"+14"),
        b"\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_anything_else_is_left_to_the_parser(other: bytes) -> None:
    assert knowing(request()).find(other) is None


def test_length_within_a_body_is_not_the_requests() -> None:
    trap = b"\r\nContent-Length: 3\r\n\r\nabc"
    plain = request().replace(b"Content-Length: 14", b"content-LENGTH: 14")
    assert knowing(request()).find(plain + trap) is None


def test_oldest_head_goes_for_the_newest() -> None:
    heads = Heads(most=2)
    for number in range(3):
        heads.keep(request(extra=b"X-N: %d\r\n" % number), asked())
    known = [heads.find(request(extra=b"X-N: %d\r\n" % number)) for number in range(3)]
    assert [found is not None for found in known] == [False, True, True]


def test_long_head_is_not_kept() -> None:
    fits, long = (b"X-Long: %b\r\n" % (b"a" * size) for size in (3000, 5000))
    assert knowing(request(extra=fits)).find(request(extra=fits)) is not None
    assert knowing(request(extra=long)).find(request(extra=long)) is None

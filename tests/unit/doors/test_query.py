"""Queries as pairs: the short way and the standard library's say the same."""

from urllib.parse import parse_qsl

from hypothesis import given
from hypothesis import strategies as st

from aiserver.doors.query import MOST_PAIRS, query_pairs


@given(st.text("ab=&%+;é2\x00", max_size=30).map(str.encode))
def test_any_query_reads_as_the_standard_library_reads_it(raw: bytes) -> None:
    text = raw.decode("ascii", errors="replace")
    assert query_pairs(raw) == parse_qsl(text, keep_blank_values=True, errors="replace")


def test_query_of_too_many_pairs_is_none() -> None:
    assert len(query_pairs(b"&".join([b"a=1"] * MOST_PAIRS))) == MOST_PAIRS
    assert query_pairs(b"&".join([b"a=1"] * (MOST_PAIRS + 1))) == []
    assert query_pairs(b"&".join([b"a=%31"] * (MOST_PAIRS + 1))) == []

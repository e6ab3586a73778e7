"""The query of an address as pairs."""

from urllib.parse import parse_qsl

MOST_PAIRS = 1000


def query_pairs(raw: bytes) -> list[tuple[str, str]]:
    """As sent, in their order; none of more than MOST_PAIRS, which no client sends."""
    text = raw.decode("ascii", errors="replace")
    if "%" not in text and "+" not in text and text.count("&") < MOST_PAIRS:
        # Nothing is quoted in most addresses, and looking for it is most of the work.
        split = (pair.partition("=") for pair in text.split("&") if pair)
        return [(name, value) for name, _, value in split]
    try:
        return parse_qsl(text, keep_blank_values=True, errors="replace", max_num_fields=MOST_PAIRS)
    except ValueError:
        return []

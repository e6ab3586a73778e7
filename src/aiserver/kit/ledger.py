"""The ledger's row as the tables have it, for each room that settles calls in its transactions."""

from decimal import Decimal
from typing import NamedTuple

from aiserver.kit.money import picodollars_or_more

_MOST_TOKENS = 2**40


class LedgerRow(NamedTuple):
    """One settled call, its members in the order of COLUMNS.

    `at` is milliseconds since 1970, `cost` whole picodollars or None where it is not known.
    """

    id: int
    at: int
    key_id: int | None
    provider: str
    model: str
    prompt_tokens: int | None
    completion_tokens: int | None
    cost: int | None
    lost: int


COLUMNS = ", ".join(LedgerRow._fields)


def row(
    id: int,
    *,
    at: int,
    key_id: int | None,
    provider: str,
    model: str,
    prompt_tokens: int | None,
    completion_tokens: int | None,
    cost: Decimal | None,
    lost: int = 0,
) -> LedgerRow:
    """`cost` in dollars. Counts that no call can have are not known."""
    return LedgerRow(
        id,
        at,
        key_id,
        provider,
        model,
        _count(prompt_tokens),
        _count(completion_tokens),
        None if cost is None else picodollars_or_more(cost),
        lost,
    )


def _count(tokens: int | None) -> int | None:
    return tokens if tokens is not None and 0 <= tokens <= _MOST_TOKENS else None

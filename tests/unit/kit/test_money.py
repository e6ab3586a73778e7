"""Money is stored to the picodollar: exactly, or not silently."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiserver.kit.money import dollars, picodollars, picodollars_or_more

LARGEST = 2**63 - 1


@given(st.integers(-LARGEST, LARGEST))
def test_every_amount_comes_back_as_it_went(amount: int) -> None:
    assert picodollars(dollars(amount)) == amount


@pytest.mark.parametrize("text", ["0.0000000000001", "1e-13", "NaN", "Infinity", "9300000", "1e40"])
def test_what_cannot_be_kept_exactly_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="dollars"):
        picodollars(Decimal(text))


def test_finer_amount_is_counted_up_never_down() -> None:
    assert picodollars_or_more(Decimal("0.0000000000001")) == 1
    assert picodollars_or_more(Decimal("0.00014137499999001")) == 141_375_000
    assert picodollars_or_more(Decimal("0.5")) == 500_000_000_000
    assert picodollars_or_more(Decimal("NaN")) is None
    assert picodollars_or_more(Decimal("1e300")) is None


def test_amount_is_shown_without_trailing_zeros() -> None:
    assert str(dollars(1_500_000_000_000)) == "1.5"
    assert dollars(0) == 0

"""Money as it is stored: whole picodollars, and Decimal dollars everywhere else."""

from decimal import ROUND_CEILING, Context, Decimal, Inexact, InvalidOperation

_PER_DOLLAR = Decimal(10) ** 12
_ONE = Decimal(1)
_LARGEST = 2**63 - 1
_EXACT = Context(prec=38, traps=[Inexact, InvalidOperation])
_multiply, _to_integral = _EXACT.multiply, _EXACT.to_integral_exact
_UP = Context(prec=38, rounding=ROUND_CEILING, traps=[InvalidOperation])


def picodollars(dollars: Decimal) -> int:
    """Exactly as many. Raises ValueError for a finer, endless or too large amount."""
    try:
        whole = int(_to_integral(_multiply(dollars, _PER_DOLLAR)))
    except (ArithmeticError, ValueError) as error:
        raise ValueError(f"{dollars} dollars are no whole number of picodollars") from error
    if -_LARGEST <= whole <= _LARGEST:
        return whole
    raise ValueError(f"{dollars} dollars are too many to be stored")


def picodollars_or_more(dollars: Decimal) -> int | None:
    """As many, a part of one counted as one; None for what is no amount at all."""
    try:
        return picodollars(dollars)
    except ValueError:
        pass
    try:
        whole = int(_UP.quantize(_UP.multiply(dollars, _PER_DOLLAR), _ONE))
    except (ArithmeticError, ValueError):
        return None
    return whole if -_LARGEST <= whole <= _LARGEST else None


def dollars(picodollars: int) -> Decimal:
    """Exactly that amount, without trailing zeros."""
    amount = _EXACT.divide(Decimal(picodollars), _PER_DOLLAR)
    return amount.normalize(_EXACT) if amount else Decimal(0)

"""What providers ask for their models, shipped and overridden, and what a call costs at that."""

import codecs
import re
import time
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from aiserver.contract.trace import Usage
from aiserver.kit import log
from aiserver.providers.catalogue import BY_ID

FILE = "prices.json"
MOST_CACHED = 4096

_SHIPPED = Path(__file__).with_name("data") / FILE
_PICO = Decimal(1).scaleb(-12)
_PICOS_PER_DOLLAR_A_MILLION = 10**6
_MOST_DOLLARS = 1_000_000
_NOTHING = Decimal(0)
# How vendors mark a snapshot of a model that they also serve by its bare name.
_SNAPSHOT = re.compile(r"-(?:latest|\d{4}-\d{2}-\d{2}|\d{8})$")
_NEVER = float("inf")
_log = log.get("prices")

Rates = tuple[int | None, int | None, int | None, int | None]
Key = tuple[str, str]


class Price(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Dollars per million tokens; None is unknown. `cached` is for tokens read from a cache.

    A prompt of more than `above` tokens is priced by `beyond` as a whole, its answer too. `rates`
    are the same prices in picodollars a token: input, output, cached, cache written.
    """

    input: Decimal | None = None
    output: Decimal | None = None
    cached: Decimal | None = None
    cache_written: Decimal | None = None
    above: int | None = None
    beyond: "Price | None" = None
    rates: Rates = (None, None, None, None)

    def __post_init__(self) -> None:
        prices = (self.input, self.output, self.cached, self.cache_written)
        input, output, cached, written = map(_picos, prices)
        msgspec.structs.force_setattr(self, "rates", (input, output, cached, written))

    def cost(self, usage: Usage) -> Decimal | None:
        """Dollars, exact; what the upstream states wins. None when a count or a price is unknown.

        An upstream that reports no cached tokens is taken to have read none.
        """
        if usage.cost is not None:
            return usage.cost
        if self.rates == (0, 0, 0, 0):
            return _NOTHING
        prompt, completion = usage.prompt, usage.completion
        if prompt is None:
            return None
        if self.above is not None and prompt > self.above:
            return self.beyond.cost(usage) if self.beyond is not None else None
        input, output, cached, written = self.rates
        # Embeddings have no completion to count, and none to pay for.
        if input is None or output is None or (completion is None and output):
            return None
        read, stored = usage.cached or 0, usage.cache_written or 0
        plain = prompt - read - stored
        if plain < 0 or (read and cached is None) or (stored and written is None):
            return None
        total = plain * input + (completion or 0) * output
        if read or stored:
            total += read * (cached or 0) + stored * (written or 0)
        return Decimal(total) * _PICO


class _Tier(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """Prices in dollars per million tokens, as a file has them."""

    input: Decimal | None = None
    output: Decimal | None = None
    cached: Decimal | None = None
    cache_written: Decimal | None = None

    def __post_init__(self) -> None:
        for price in (self.input, self.output, self.cached, self.cache_written):
            _check(price)

    def price(self) -> Price:
        return Price(
            input=self.input,
            output=self.output,
            cached=self.cached,
            cache_written=self.cache_written,
        )


class Row(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """One row of a file; `since` is the day, in UTC, that the price begins, written `from`."""

    type: str
    model: Annotated[str, Meta(min_length=1, max_length=300)]
    since: date = msgspec.field(default=date.min, name="from")
    input: Decimal | None = None
    output: Decimal | None = None
    cached: Decimal | None = None
    cache_written: Decimal | None = None
    above: Annotated[int, Meta(ge=1)] | None = None
    beyond: _Tier | None = None
    source: str | None = None

    def __post_init__(self) -> None:
        if self.type not in BY_ID:
            raise ValueError(f"`type` is one of {', '.join(BY_ID)}")
        if self.model.count("*") > 1:
            raise ValueError("`model` holds at most one *")
        if (self.above is None) != (self.beyond is None):
            raise ValueError("`above` and `beyond` go together")
        for price in (self.input, self.output, self.cached, self.cache_written):
            _check(price)

    def price(self) -> Price:
        return Price(
            input=self.input,
            output=self.output,
            cached=self.cached,
            cache_written=self.cache_written,
            above=self.above,
            beyond=self.beyond.price() if self.beyond is not None else None,
        )


class Prices:
    """Shipped rows, with those of `overrides` over them; `problems` names a file left aside.

    `clock` gives seconds since 1970: some prices are announced for a day to come.
    """

    def __init__(
        self, overrides: Path | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._overrides = overrides
        self._clock = clock
        self._rows: dict[Key, list[Row]] = {}
        self._exact: dict[Key, Price] = {}
        self._patterns: list[tuple[str, str, str, Price]] = []
        self._cache: dict[Key, Price | None] = {}
        self._changes_at = _NEVER
        self.problems: dict[str, str] = {}
        self.reload()

    def reload(self) -> None:
        """Reads both files again; a broken override is logged and counts as absent."""
        self.problems = {}
        self._rows = _by_model(_SHIPPED.read_bytes()) | self._own()
        for name, problem in self.problems.items():
            _log.warning("override_ignored", file=name, problem=problem)
        self._apply()

    def of(self, ai_type_id: str, model: str) -> Price | None:
        """The price of a model by the upstream's own name for it; None when nobody knows it.

        An exact row wins, then one of the name without its snapshot, then the longest pattern.
        """
        if self._clock() >= self._changes_at:
            self._apply()
        key = (ai_type_id, model)
        try:
            return self._cache[key]
        except KeyError:
            pass
        if len(self._cache) >= MOST_CACHED:
            self._cache.clear()
        found = self._cache[key] = self._find(ai_type_id, model)
        return found

    def cost_of(self, ai_type_id: str, model: str, usage: Usage) -> Decimal | None:
        """Dollars; without a known price only what the upstream itself states."""
        price = self.of(ai_type_id, model)
        return usage.cost if price is None else price.cost(usage)

    def _find(self, ai_type_id: str, model: str) -> Price | None:
        exact = self._exact.get((ai_type_id, model))
        if exact is None:
            exact = self._exact.get((ai_type_id, _SNAPSHOT.sub("", model)))
        if exact is not None:
            return exact
        for type, start, end, price in self._patterns:
            long_enough = len(model) >= len(start) + len(end)
            if (
                type == ai_type_id
                and long_enough
                and model.startswith(start)
                and model.endswith(end)
            ):
                return price
        return None

    def _apply(self) -> None:
        """Takes the rows that are in force today."""
        today = datetime.fromtimestamp(self._clock(), UTC).date()
        self._cache.clear()
        self._exact.clear()
        self._patterns.clear()
        coming = [row.since for rows in self._rows.values() for row in rows if row.since > today]
        self._changes_at = _midnight(min(coming)) if coming else _NEVER
        for (type, model), rows in self._rows.items():
            begun = [row for row in rows if row.since <= today]
            if not begun:
                continue
            price = max(begun, key=lambda row: row.since).price()
            if "*" in model:
                start, _, end = model.partition("*")
                self._patterns.append((type, start, end, price))
            else:
                self._exact[type, model] = price
        self._patterns.sort(key=lambda pattern: -len(pattern[1] + pattern[2]))

    def _own(self) -> dict[Key, list[Row]]:
        if self._overrides is None:
            return {}
        try:
            return _by_model((self._overrides / FILE).read_bytes())
        except FileNotFoundError:
            return {}
        except OSError as error:
            self.problems[FILE] = f"cannot be read: {error.strerror}"
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            self.problems[FILE] = str(error)
        return {}


_DECODER = msgspec.json.Decoder(list[Row])


def _by_model(text: bytes) -> dict[Key, list[Row]]:
    text = text.removeprefix(codecs.BOM_UTF8)
    found: dict[Key, list[Row]] = {}
    for row in _DECODER.decode(text) if text.strip() else ():
        same = found.setdefault((row.type, row.model), [])
        if any(other.since == row.since for other in same):
            raise msgspec.ValidationError(f"{row.type} {row.model} is there twice")
        same.append(row)
    return found


def _picos(dollars: Decimal | None) -> int | None:
    return None if dollars is None else int(dollars * _PICOS_PER_DOLLAR_A_MILLION)


def _check(dollars: Decimal | None) -> None:
    if dollars is None:
        return
    if not dollars.is_finite() or not 0 <= dollars <= _MOST_DOLLARS:
        raise ValueError("a price is from 0 to 1000000 dollars per million tokens")
    # History counts whole picodollars; a finer price would lose what it adds up.
    exponent = dollars.as_tuple().exponent
    if isinstance(exponent, int) and exponent < -6:
        raise ValueError("a price has at most 6 digits behind the point")


def _midnight(day: date) -> float:
    return datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()

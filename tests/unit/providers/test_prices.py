"""What models cost: the rows that ship, rows of an operator, and the arithmetic."""

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest

from aiserver.contract.trace import Usage
from aiserver.providers import prices
from aiserver.providers.catalogue import BY_ID
from aiserver.providers.prices import MOST_CACHED, Price, Prices, Row

SHIPPED = Path(prices.__file__).parent / "data" / "prices.json"


@pytest.fixture
def overrides(tmp_path: Path) -> Path:
    return tmp_path


def write(folder: Path, text: str) -> Prices:
    (folder / "prices.json").write_text(text)
    return Prices(folder)


def dollars(price: Price | None) -> tuple[str, str]:
    assert price is not None
    return str(price.input), str(price.output)


def test_each_kind_of_token_has_its_price() -> None:
    price = Price(
        input=Decimal("3"),
        output=Decimal("15"),
        cached=Decimal("0.30"),
        cache_written=Decimal("3.75"),
    )
    usage = Usage(prompt=1000, cached=600, cache_written=100, completion=50, reasoning=40)
    # 300 plain, 600 read, 100 written, 50 answered; reasoning is within the answer.
    assert price.cost(usage) == Decimal("0.002205")


def test_cost_adds_up_exactly() -> None:
    price = Price(input=Decimal("0.1"), output=Decimal("0.000001"))
    one = price.cost(Usage(prompt=1, completion=1))
    assert one == Decimal("0.000000100001")
    assert price.cost(Usage(prompt=10**9, completion=10**9)) == Decimal("100.001")


@pytest.mark.parametrize(
    "usage",
    [
        Usage(),
        Usage(prompt=10),
        Usage(completion=10),
        Usage(prompt=10, completion=1, cached=5),
        Usage(prompt=10, completion=1, cache_written=5),
        Usage(prompt=10, completion=1, cached=11),
    ],
)
def test_unknown_count_or_price_is_no_cost(usage: Usage) -> None:
    assert Price(input=Decimal(1), output=Decimal(1)).cost(usage) is None


def test_nothing_used_costs_nothing() -> None:
    price = Price(input=Decimal(1), output=Decimal(1))
    assert price.cost(Usage(prompt=0, completion=0, cached=0, cache_written=0)) == 0


def test_upstream_states_its_own_cost() -> None:
    usage = Usage(prompt=10, completion=10, cost=Decimal("0.5"))
    assert Price(input=Decimal(1), output=Decimal(1)).cost(usage) == Decimal("0.5")
    assert Prices().cost_of("OpenRouter", "openai/gpt-4o", usage) == Decimal("0.5")
    assert Prices().cost_of("OpenRouter", "openai/gpt-4o", Usage(prompt=1, completion=1)) is None


def test_long_prompt_is_priced_as_a_whole() -> None:
    price = Prices().of("Anthropic", "claude-haiku-5-5")
    assert price is not None
    assert price.cost(Usage(prompt=100_000, completion=1000)) == Decimal("0.0105")
    assert price.cost(Usage(prompt=100_001, completion=1000)) == Decimal("0.0525005")


def test_embeddings_need_no_completion() -> None:
    price = Prices().of("Open AI", "text-embedding-3-small")
    assert price is not None
    assert price.cost(Usage(prompt=1_000_000)) == Decimal("0.02")


@pytest.mark.parametrize("kind", ["Ollama", "Local"])
def test_own_machine_is_free(kind: str) -> None:
    price = Prices().of(kind, "anything:7b")
    assert price is not None
    assert price.cost(Usage()) == 0


def test_hosted_models_of_ollama_are_not_free() -> None:
    usage = Usage(prompt=1, completion=1)
    assert Prices().cost_of("Ollama", "gpt-oss:120b-cloud", usage) is None


@pytest.mark.parametrize(
    ("kind", "model", "of"),
    [
        ("Open AI", "gpt-4o-2024-11-20", ("2.50", "10")),
        ("Open AI", "gpt-4o-2024-05-13", ("5", "15")),
        ("Open AI", "gpt-5-chat-latest", ("1.25", "10")),
        ("Anthropic", "claude-sonnet-4-5-20250929", ("3", "15")),
        ("Anthropic", "claude-3-7-sonnet-latest", ("3", "15")),
    ],
)
def test_snapshot_costs_what_its_model_costs(kind: str, model: str, of: tuple[str, str]) -> None:
    assert dollars(Prices().of(kind, model)) == of


@pytest.mark.parametrize(
    ("kind", "model"),
    [
        ("Open AI", "gpt-4o-audio-preview"),
        ("Open AI", "gpt-4o-2024-11-20-ours"),
        ("Open AI", "claude-opus-5"),
        ("Custom", "gpt-4o"),
        ("OpenRouter", "openai/gpt-4o"),
        ("nobody", "gpt-4o"),
    ],
)
def test_nothing_is_guessed(kind: str, model: str) -> None:
    assert Prices().of(kind, model) is None


def test_announced_price_begins_on_its_day() -> None:
    now = datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()
    found = Prices(clock=lambda: now)
    assert dollars(found.of("Google Cloud", "gemini-3.8-flash")) == ("0.75", "3.75")
    now += 1
    assert dollars(found.of("Google Cloud", "gemini-3.8-flash")) == ("1.50", "7.50")


def test_own_row_replaces_the_shipped_one(overrides: Path) -> None:
    found = write(
        overrides,
        '\ufeff[{"type": "Open AI", "model": "gpt-4o", "input": 2, "output": "8.5"},'
        ' {"type": "Custom", "model": "*", "input": 0, "output": 0},'
        ' {"type": "Custom", "model": "big-*", "input": 1, "output": 1}]',
    )
    assert found.problems == {}
    price = found.of("Open AI", "gpt-4o")
    assert price is not None
    assert (price.input, price.output, price.cached) == (Decimal(2), Decimal("8.5"), None)
    assert dollars(found.of("Custom", "big-one")) == ("1", "1")
    assert dollars(found.of("Custom", "small-one")) == ("0", "0")
    assert dollars(found.of("Open AI", "gpt-4o-mini")) == ("0.15", "0.60")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[", "truncated"),
        ("{}", "Expected `array`"),
        ('[{"type": "Nobody", "model": "m"}]', "`type` is one of Open AI"),
        ('[{"type": "Custom", "model": "m", "ouput": 1}]', "ouput"),
        ('[{"type": "Custom", "model": "m", "input": -1}]', "from 0 to 1000000"),
        ('[{"type": "Custom", "model": "m", "input": "NaN"}]', "from 0 to 1000000"),
        ('[{"type": "Custom", "model": "m", "input": 0.0000001}]', "at most 6 digits"),
        ('[{"type": "Custom", "model": "m", "above": 5}]', "go together"),
        ('[{"type": "Custom", "model": "a*b*c"}]', "at most one *"),
        ('[{"type": "Custom", "model": "m"}, {"type": "Custom", "model": "m"}]', "twice"),
    ],
)
def test_broken_file_is_named_and_left_aside(overrides: Path, text: str, says: str) -> None:
    found = write(overrides, text)
    assert says in found.problems["prices.json"]
    assert dollars(found.of("Open AI", "gpt-4o")) == ("2.50", "10")


def test_reload_takes_what_is_there_now(overrides: Path) -> None:
    found = write(overrides, '[{"type": "Custom", "model": "m", "input": 1, "output": 1}]')
    assert found.of("Custom", "m") is not None
    (overrides / "prices.json").write_text("")
    found.reload()
    assert found.of("Custom", "m") is None


def test_names_of_callers_do_not_fill_memory() -> None:
    found = Prices()
    for number in range(MOST_CACHED * 2 + 10):
        assert found.of("Custom", f"m{number}") is None
    assert len(found._cache) <= MOST_CACHED  # pyright: ignore[reportPrivateUsage]


def test_shipped_rows_are_whole() -> None:
    rows = msgspec.json.decode(SHIPPED.read_bytes(), type=list[Row])
    assert len({(row.type, row.model, row.since) for row in rows}) == len(rows)
    for row in rows:
        assert row.type in BY_ID
        assert row.source, row.model
        assert (row.input is None) == (row.output is None)

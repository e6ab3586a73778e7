"""What a scraper reads of what was counted."""

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families

from aiserver.kit.telemetry import ProviderReading, Readings, Telemetry


@pytest.fixture
def telemetry() -> Telemetry:
    made = Telemetry(version="1.2", operations=["Chat", "Hello"], outcomes=["ok", "timeout"])
    made.known_providers(["one", "two"])
    return made


def settle(telemetry: Telemetry, provider: str | None = "one", **more: object) -> None:
    values = {"operation": "Chat", "status": 200, "duration": 0.2, "overhead": 0.0002, **more}
    telemetry.settled(provider=provider, **values)  # pyright: ignore[reportArgumentType]


async def read(telemetry: Telemetry) -> dict[tuple[str, ...], float]:
    """(name, label values...) of every sample."""
    body, _ = await telemetry.page()
    return {
        (sample.name, *(sample.labels[label] for label in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(200, "2xx"), (304, "2xx"), (404, "4xx"), (429, "429"), (499, "cancelled"), (504, "5xx")],
)
async def test_call_is_counted_by_its_outcome(
    telemetry: Telemetry, status: int, outcome: str
) -> None:
    settle(telemetry, status=status)
    seen = await read(telemetry)
    assert seen["aiserver_calls_total", "Chat", outcome, "one"] == 1
    assert sum(v for k, v in seen.items() if k[0] == "aiserver_calls_total") == 1


async def test_durations_fall_into_buckets(telemetry: Telemetry) -> None:
    for duration in (0.1, 0.2, 2000.0):
        settle(telemetry, duration=duration, first_token=duration / 2)
    seen = await read(telemetry)
    bucket = "aiserver_call_duration_seconds_bucket"
    assert seen[bucket, "0.05", "Chat"] == 0
    assert seen[bucket, "0.1", "Chat"] == 1
    assert seen[bucket, "900.0", "Chat"] == 2
    assert seen[bucket, "+Inf", "Chat"] == 3
    assert seen["aiserver_call_duration_seconds_sum", "Chat"] == pytest.approx(2000.3)
    assert seen["aiserver_time_to_first_token_seconds_count", "one"] == 3
    assert seen["aiserver_gateway_overhead_seconds_count",] == 3


async def test_tokens_and_dollars_add_up(telemetry: Telemetry) -> None:
    settle(telemetry, prompt=10, completion=5, cost=0.25)
    settle(telemetry, prompt=1, completion=None, cost=None)
    seen = await read(telemetry)
    assert seen["aiserver_tokens_total", "prompt", "one"] == 11
    assert seen["aiserver_tokens_total", "completion", "one"] == 5
    assert seen["aiserver_cost_dollars_total", "one"] == 0.25


async def test_names_that_nobody_knows_make_no_series(telemetry: Telemetry) -> None:
    settle(telemetry, "one")
    settle(telemetry, "no-such")
    before = len(await read(telemetry))
    for number in range(500):
        settle(telemetry, f"p{number}")
        telemetry.attempted(f"p{number}", f"o{number}")
    seen = await read(telemetry)
    assert len(seen) == before
    assert seen["aiserver_calls_total", "Chat", "2xx", "other"] == 501
    assert seen["aiserver_attempts_total", "other", "other"] == 500


async def test_unknown_operation_is_other(telemetry: Telemetry) -> None:
    settle(telemetry, None, operation="Nonsense")
    assert (await read(telemetry))["aiserver_calls_total", "other", "2xx", "none"] == 1


async def test_removed_provider_is_dropped(telemetry: Telemetry) -> None:
    settle(telemetry, "one")
    settle(telemetry, "two")
    telemetry.known_providers(["two", "three"])
    settle(telemetry, "one")
    seen = await read(telemetry)
    assert not any("one" in name for name in seen)
    assert seen["aiserver_calls_total", "Chat", "2xx", "two"] == 1
    assert seen["aiserver_calls_total", "Chat", "2xx", "other"] == 1
    assert seen["aiserver_tokens_total", "prompt", "three"] == 0


async def test_provider_that_returns_is_counted_anew(telemetry: Telemetry) -> None:
    settle(telemetry, "one", prompt=5)
    telemetry.known_providers([])
    telemetry.known_providers(["one"])
    settle(telemetry, "one", prompt=2)
    assert (await read(telemetry))["aiserver_tokens_total", "prompt", "one"] == 2


async def test_attempts_are_counted_by_kind(telemetry: Telemetry) -> None:
    telemetry.attempted("one", "ok")
    telemetry.attempted("one", "timeout")
    telemetry.attempted("one", "timeout")
    seen = await read(telemetry)
    assert seen["aiserver_attempts_total", "ok", "one"] == 1
    assert seen["aiserver_attempts_total", "timeout", "one"] == 2


async def test_readings_are_asked_at_the_scrape(telemetry: Telemetry) -> None:
    running, dropped = 3, 0
    telemetry.watch(
        Readings(
            providers=lambda: [
                ProviderReading(name="one", running=running, slots=None, state="up"),
                ProviderReading(name="two", running=0, slots=4, state="down"),
            ],
            open_connections=lambda: 7,
            waiting_calls=lambda: 2,
            history_held=lambda: 9,
            history_dropped=lambda: dropped,
            history_written=lambda: 11,
        )
    )
    running, dropped = 1, 6
    seen = await read(telemetry)
    assert seen["aiserver_provider_running", "one"] == 1
    assert ("aiserver_provider_slots", "one") not in seen
    assert seen["aiserver_provider_slots", "two"] == 4
    assert seen["aiserver_provider_state", "two", "down"] == 1
    assert seen["aiserver_open_connections",] == 7
    assert seen["aiserver_waiting_calls",] == 2
    assert seen["aiserver_history_held",] == 9
    assert seen["aiserver_history_dropped_total",] == 6
    assert seen["aiserver_history_written_total",] == 11


async def test_page_names_the_server_and_its_process(telemetry: Telemetry) -> None:
    telemetry.unauthenticated()
    seen = await read(telemetry)
    assert seen["aiserver_unauthenticated_total",] == 1
    assert any(name[0] == "aiserver_build_info" and "1.2" in name for name in seen)
    assert seen["process_open_fds",] > 0


async def test_page_is_valid_open_metrics(telemetry: Telemetry) -> None:
    settle(telemetry, first_token=0.1, prompt=1)
    body, content_type = await telemetry.page("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert "aiserver_calls" in {family.name for family in open_metrics(body.decode())}


async def test_two_servers_do_not_share_counts(telemetry: Telemetry) -> None:
    settle(telemetry)
    other = Telemetry(version="1", operations=["Chat"])
    assert not any(name[0] == "aiserver_calls_total" for name in await read(other))


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
async def test_series_of_one_of_several_processes_say_which(accept: str) -> None:
    made = Telemetry(version="1", operations=["Chat"], process=3)
    settle(made, None)
    read_all = open_metrics if accept else text_string_to_metric_families
    for _ in range(2):
        body, _ = await made.page(accept)
        samples = [s for family in read_all(body.decode()) for s in family.samples]
        assert {sample.labels.get("process") for sample in samples} == {"3"}
        assert {"process_start_time_seconds", "aiserver_calls_total"} <= {s.name for s in samples}

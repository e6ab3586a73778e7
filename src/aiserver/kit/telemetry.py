"""Counts what happens and prints it for a Prometheus scraper, every label from a closed set."""

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from platform import python_version

import msgspec
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

OTHER = "other"
NONE = "none"
OUTCOMES = ("2xx", "4xx", "429", "5xx", "cancelled")
CANCELLED = 499

_DURATIONS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900)
_OVERHEADS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
_FIRST_TOKENS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120)


class ProviderReading(msgspec.Struct, frozen=True, kw_only=True):
    """A provider at the time of a scrape; `slots` is None where it has no limit."""

    name: str
    running: int
    slots: int | None
    state: str


class Readings(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for at every scrape; what is None is not shown. Must not raise or wait."""

    providers: Callable[[], Iterable[ProviderReading]] | None = None
    open_connections: Callable[[], int] | None = None
    waiting_calls: Callable[[], int] | None = None
    history_held: Callable[[], int] | None = None
    history_dropped: Callable[[], int] | None = None
    history_written: Callable[[], int] | None = None
    history_lost: Callable[[], int | None] | None = None


class _Histogram:
    """The library's own takes 1.5 µs an observation, for locks that one loop does not need."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = tuple(map(float, bounds))
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def add_to(self, family: HistogramMetricFamily, labels: list[str]) -> None:
        seen = 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            seen += count
            buckets.append((str(bound), seen))
        family.add_metric(labels, buckets, self._sum)


class _Provider:
    """What is counted for each provider."""

    __slots__ = ("attempts", "completion", "dollars", "first_token", "prompt")

    def __init__(self, outcomes: Iterable[str]) -> None:
        self.prompt = 0
        self.completion = 0
        self.dollars = 0.0
        self.first_token = _Histogram(_FIRST_TOKENS)
        self.attempts = dict.fromkeys(outcomes, 0)


class _Calls:
    """The calls of one operation that one provider served."""

    __slots__ = ("duration", "outcomes", "provider")

    def __init__(self, duration: _Histogram, provider: _Provider) -> None:
        self.outcomes = [0] * len(OUTCOMES)
        self.duration = duration
        self.provider = provider


class Telemetry(Collector):
    """Used by one event loop. `operations` and `outcomes` (of attempts) are all there are.

    Names outside those sets, and providers that `known_providers` does not hold, count as "other".
    `process` labels every series, for one of several that a scraper finds at one address.
    """

    def __init__(
        self,
        *,
        version: str,
        operations: Iterable[str],
        outcomes: Iterable[str] = ("ok",),
        process: int | None = None,
    ) -> None:
        self._version = version
        self._labels = {} if process is None else {"process": str(process)}
        self._durations = {name: _Histogram(_DURATIONS) for name in (*operations, OTHER)}
        self._outcomes = (*dict.fromkeys((*outcomes, OTHER)),)
        self._providers: dict[str, _Provider] = {}
        self._calls: dict[tuple[str, str | None], _Calls] = {}
        self._overhead = _Histogram(_OVERHEADS)
        self._unauthenticated = 0
        self._readings = Readings()
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        self.known_providers(())

    def known_providers(self, names: Iterable[str]) -> None:
        """Takes over the providers there are; the counts of those that are gone go with them."""
        kept = self._providers
        self._providers = {
            name: kept.get(name) or _Provider(self._outcomes) for name in (*names, NONE, OTHER)
        }
        self._calls = {
            key: calls for key, calls in self._calls.items() if _name(key) in self._providers
        }

    def watch(self, readings: Readings) -> None:
        """What to ask at a scrape, instead of what was asked before."""
        self._readings = readings

    def settled(
        self,
        operation: str,
        provider: str | None,
        *,
        status: int,
        duration: float,
        overhead: float,
        first_token: float | None = None,
        prompt: int | None = None,
        completion: int | None = None,
        cost: float | None = None,
    ) -> None:
        """One call that ended; seconds, tokens, dollars. Status 499 is a caller that hung up."""
        calls = self._calls.get((operation, provider)) or self._calls_of(operation, provider)
        calls.outcomes[_outcome(status)] += 1
        calls.duration.observe(duration)
        self._overhead.observe(overhead)
        served = calls.provider
        if first_token is not None:
            served.first_token.observe(first_token)
        if prompt is not None:
            served.prompt += prompt
        if completion is not None:
            served.completion += completion
        if cost is not None:
            served.dollars += cost

    def attempted(self, provider: str, outcome: str) -> None:
        """One provider that was asked, whatever came of the call."""
        attempts = (self._providers.get(provider) or self._providers[OTHER]).attempts
        attempts[outcome if outcome in attempts else OTHER] += 1

    def unauthenticated(self) -> None:
        """A call without a usable key."""
        self._unauthenticated += 1

    async def page(self, accept: str = "") -> tuple[bytes, str]:
        """What a scraper reads and its content type, in the newest form that `accept` names."""
        encode, content_type = choose_encoder(accept)
        taken = _Taken(list(self._registry.collect()), self._labels)
        # With many providers it takes tens of milliseconds to print, in which no call may stand.
        return await asyncio.to_thread(encode, taken), content_type

    def collect(self) -> Iterator[Metric]:
        build = {"version": self._version, "python": python_version()}
        yield InfoMetricFamily("aiserver_build", "This server.", value=build)
        yield from self._of_calls()
        yield from self._of_providers()
        unauthenticated = float(self._unauthenticated)
        yield CounterMetricFamily(
            "aiserver_unauthenticated", "Calls without a usable key.", value=unauthenticated
        )
        yield from self._of_readings()
        if self._readings.providers is not None:
            yield from _of_state(self._readings.providers())

    def _calls_of(self, operation: str, provider: str | None) -> _Calls:
        name = NONE if provider is None else provider if provider in self._providers else OTHER
        operation = operation if operation in self._durations else OTHER
        key = (operation, None if name == NONE else name)
        found = self._calls.get(key)
        if found is None:
            found = _Calls(self._durations[operation], self._providers[name])
            self._calls[key] = found
        return found

    def _of_calls(self) -> Iterator[Metric]:
        calls = CounterMetricFamily(
            "aiserver_calls", "Calls that ended.", labels=["operation", "provider", "outcome"]
        )
        for key, counted in self._calls.items():
            for outcome, count in zip(OUTCOMES, counted.outcomes, strict=True):
                calls.add_metric([key[0], _name(key), outcome], count)
        yield calls
        durations = HistogramMetricFamily(
            "aiserver_call_duration_seconds",
            "From a call's start to its end.",
            labels=["operation"],
        )
        for operation in dict.fromkeys(key[0] for key in self._calls):
            self._durations[operation].add_to(durations, [operation])
        yield durations
        overhead = HistogramMetricFamily(
            "aiserver_gateway_overhead_seconds",
            "What the gateway itself took of a call.",
            labels=[],
        )
        self._overhead.add_to(overhead, [])
        yield overhead

    def _of_providers(self) -> Iterator[Metric]:
        first_tokens = HistogramMetricFamily(
            "aiserver_time_to_first_token_seconds",
            "From a call's start to the first token.",
            labels=["provider"],
        )
        tokens = CounterMetricFamily(
            "aiserver_tokens", "Tokens as providers report them.", labels=["provider", "kind"]
        )
        dollars = CounterMetricFamily(
            "aiserver_cost_dollars", "What priced calls cost.", labels=["provider"]
        )
        attempts = CounterMetricFamily(
            "aiserver_attempts", "Providers that were asked.", labels=["provider", "outcome"]
        )
        for name, provider in self._providers.items():
            provider.first_token.add_to(first_tokens, [name])
            tokens.add_metric([name, "prompt"], provider.prompt)
            tokens.add_metric([name, "completion"], provider.completion)
            dollars.add_metric([name], provider.dollars)
            for outcome, count in provider.attempts.items():
                attempts.add_metric([name, outcome], count)
        yield from (first_tokens, tokens, dollars, attempts)

    def _of_readings(self) -> Iterator[Metric]:
        now = self._readings
        gauges = (
            ("aiserver_open_connections", "Connections to providers.", now.open_connections),
            ("aiserver_waiting_calls", "Calls that wait for a provider.", now.waiting_calls),
            ("aiserver_history_held", "History not written yet.", now.history_held),
            (
                "aiserver_history_lost_at_last_stop",
                "Calls that history lost when the server was killed last.",
                now.history_lost,
            ),
        )
        for name, help, read in gauges:
            value = read() if read is not None else None
            if value is not None:
                yield GaugeMetricFamily(name, help, value=value)
        counters = (
            ("aiserver_history_dropped", "History lost to a full buffer.", now.history_dropped),
            ("aiserver_history_written", "History written.", now.history_written),
        )
        for name, help, read in counters:
            if read is not None:
                yield CounterMetricFamily(name, help, value=read())


class _Taken(Collector):
    """What was read at one moment; `labels` are put to each of its series."""

    def __init__(self, families: list[Metric], labels: dict[str, str]) -> None:
        self._families = families
        self._labels = labels

    def collect(self) -> list[Metric]:
        for sample in (sample for family in self._families for sample in family.samples):
            sample.labels.update(self._labels)
        return self._families


def _of_state(readings: Iterable[ProviderReading]) -> Iterator[Metric]:
    running = GaugeMetricFamily(
        "aiserver_provider_running", "Calls at a provider now.", labels=["provider"]
    )
    slots = GaugeMetricFamily(
        "aiserver_provider_slots", "Calls that a provider takes at once.", labels=["provider"]
    )
    state = GaugeMetricFamily(
        "aiserver_provider_state", "1 for the state it is in.", labels=["provider", "state"]
    )
    for reading in readings:
        running.add_metric([reading.name], reading.running)
        if reading.slots is not None:
            slots.add_metric([reading.name], reading.slots)
        state.add_metric([reading.name, reading.state], 1)
    yield from (running, slots, state)


def _name(key: tuple[str, str | None]) -> str:
    return key[1] or NONE


def _outcome(status: int) -> int:
    if status < 400:
        return 0
    if status >= 500:
        return 3
    return 2 if status == 429 else 4 if status == CANCELLED else 1

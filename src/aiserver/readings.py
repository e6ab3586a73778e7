"""What a scrape is told of providers, connections and the history."""

from aiserver.history.store import History
from aiserver.kit.telemetry import ProviderReading, Readings
from aiserver.kit.upstream import UpstreamPool
from aiserver.providers.pool import ProviderPool
from aiserver.providers.store import Provider


def readings_of(pool: ProviderPool, connections: UpstreamPool, history: History) -> Readings:
    """Asked anew at each scrape."""

    def reading(provider: Provider) -> ProviderReading:
        return ProviderReading(
            name=provider.name,
            running=pool.running(provider.id),
            slots=provider.concurrency or None,
            state=pool.state(provider.id).value,
        )

    return Readings(
        providers=lambda: map(reading, pool.providers()),
        open_connections=lambda: connections.open_connections,
        waiting_calls=lambda: pool.waiting,
        history_held=lambda: history.held,
        history_dropped=lambda: history.dropped,
        history_written=lambda: history.written,
        history_lost=lambda: history.lost_at_last_stop,
    )

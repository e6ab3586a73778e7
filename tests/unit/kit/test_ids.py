"""Numbers of calls: each once, in the order of time."""

from datetime import UTC, datetime

from aiserver.kit.ids import CallIds, began_ms, first_of, moment_of

MOMENT = datetime(2026, 11, 15, 12, 0, 0, 123_000, tzinfo=UTC)
MS = 1_794_744_000_123


def test_number_tells_when_the_call_began() -> None:
    number = CallIds().next(MS)
    assert began_ms(number) == MS
    assert moment_of(MS) == MOMENT
    assert first_of(MOMENT) <= number < first_of(moment_of(MS + 1))
    assert number < 2**63


def test_numbers_grow_when_the_clock_steps_back() -> None:
    ids = CallIds()
    given = [ids.next(MS), ids.next(MS - 60_000), ids.next(MS), ids.next(MS + 1)]
    assert given == sorted(set(given))


def test_more_calls_than_a_millisecond_counts_take_from_the_next() -> None:
    ids = CallIds(3)
    given = [ids.next(MS) for _ in range(1000)]
    assert given == sorted(set(given))
    assert began_ms(given[-1]) == MS + 3
    assert ids.next(MS + 1) > given[-1]


def test_processes_and_kinds_of_calls_never_meet() -> None:
    sources = [CallIds(process, kind) for process in (0, 1, 2, 4095) for kind in (0, 1)]
    given = [ids.next(MS) for ids in sources for _ in range(600)]
    assert len(set(given)) == len(given)

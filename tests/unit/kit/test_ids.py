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


def test_more_calls_than_a_millisecond_counts_are_still_apart() -> None:
    ids = CallIds()
    first = ids.next(MS)
    given = [ids.next(MS) for _ in range(2**21 + 1000)]
    assert given[-1] == first + len(given)
    assert ids.next(MS + 1) > given[-1]

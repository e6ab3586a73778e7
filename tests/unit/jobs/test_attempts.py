"""What follows from one attempt to deliver a callback."""

from datetime import timedelta
from email.utils import format_datetime

import pytest

from aiserver.jobs.attempts import LONGEST_WAIT, SCHEDULE, Verdict, judge, retry_after
from aiserver.jobs.store import DeliveryState
from aiserver.kit.outbound import Answer
from fakes.calls import NOVEMBER


def judged(
    status: int, *, attempt: int = 1, random: float = 0.0, body: bytes = b"", asked: str = ""
) -> Verdict:
    answer = Answer(status, {"retry-after": asked} if asked else {}, body)
    return judge(answer, attempt=attempt, now=NOVEMBER, random=lambda: random)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_only_success_delivers(status: int) -> None:
    assert judged(status).state is DeliveryState.DELIVERED


@pytest.mark.parametrize("status", [100, 301, 302, 307, 400, 401, 404, 429, 500, 503])
def test_everything_else_is_tried_again(status: int) -> None:
    assert judged(status).state is DeliveryState.PENDING


def test_gone_disables() -> None:
    assert judged(410).state is DeliveryState.DISABLED


def test_attempts_are_spread_over_three_days() -> None:
    waits = [judged(500, attempt=attempt).wait for attempt in range(1, len(SCHEDULE))]
    assert waits == [5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400]
    assert judged(500, attempt=len(SCHEDULE)).state is DeliveryState.FAILED


def test_redelivery_of_one_that_was_given_up_has_the_whole_plan_again() -> None:
    last = len(SCHEDULE)
    waits = [judged(500, attempt=last + attempt).wait for attempt in range(1, last)]
    assert waits == list(SCHEDULE[1:])
    assert judged(500, attempt=2 * last).state is DeliveryState.FAILED


def test_jitter_only_adds_time() -> None:
    assert judged(500, attempt=2, random=0.999).wait == pytest.approx(360, abs=0.1)


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_longer_retry_after_is_honoured(status: int) -> None:
    assert judged(status, asked="120").wait == 120
    assert judged(status, asked="1").wait == 5


def test_retry_after_of_other_answers_is_ignored() -> None:
    assert judged(500, asked="120").wait == 5


@pytest.mark.parametrize(
    ("value", "wait"),
    [
        (None, 0),
        ("", 0),
        ("soon", 0),
        ("-5", 0),
        ("1.5", 0),
        ("٣", 0),
        ("90", 90),
        ("9" * 400, LONGEST_WAIT),
        (format_datetime(NOVEMBER + timedelta(minutes=2), usegmt=True), 120),
        (format_datetime(NOVEMBER - timedelta(minutes=2), usegmt=True), 0),
        (format_datetime(NOVEMBER + timedelta(days=9), usegmt=True), LONGEST_WAIT),
        ("Fri, 99 Nov 2026 99:00:00 GMT", 0),
        ("Wed, 21 Oct 2015 07:28:00 +99999999999999999999", 0),
        ("Fri, 31 Dec 9999 23:59:59 -2359", LONGEST_WAIT),
        ("Mon, 01 Jan 0001 00:00:00 +2359", 0),
    ],
)
def test_retry_after_is_read_and_bounded(value: str | None, wait: float) -> None:
    assert retry_after(value, now=NOVEMBER) == wait


def test_answer_is_told_in_part_and_in_one_line() -> None:
    error = judged(500, body=b"first\r\nsecond\x00" + b"x" * 5_000).error or ""
    assert error.startswith("The receiver answered 500: first  second")
    assert len(error) < 1_100


def test_redirect_is_named() -> None:
    assert "not followed" in (judged(302).error or "")


def test_call_without_answer_is_tried_again() -> None:
    verdict = judge(None, attempt=1, now=NOVEMBER, random=lambda: 0.0, error="refused")
    assert (verdict.state, verdict.wait, verdict.error) == (DeliveryState.PENDING, 5, "refused")

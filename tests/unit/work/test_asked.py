"""What headers may ask of a job: when it begins, by when it ends, how urgent it is."""

from datetime import UTC, datetime, timedelta

import pytest

from aiserver.contract.caller import ADMINISTRATOR, Caller
from aiserver.contract.errors import Forbidden, InvalidRequest
from aiserver.contract.twins import Wishes
from aiserver.work.asked import Asked, Plan, planned

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
NOW = int(NOON.timestamp() * 1000)
HOUR, DAY = 3_600_000, 86_400_000
KEY = Caller(key_id=1)


def plan(wishes: Wishes | None = None, caller: Caller = KEY, **headers: str) -> Plan:
    return planned(Asked(**headers), wishes or Wishes(), caller, now=NOW)


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("90", 90_000),
        (" 1.5 ", 1_500),
        ("2026-11-23T13:00:00Z", HOUR),
        ("2026-11-23T13:00:00", HOUR),
        ("2026-11-23T13:00:00+01:00", 0),
        ("2592000", 30 * DAY),
    ],
)
def test_time_is_seconds_from_now_or_a_moment(text: str, after: int) -> None:
    assert plan(run_after=text).run_after == NOW + after


@pytest.mark.parametrize("text", ["", "soon", "-5", "1e3", "٣", "2026-13-01", "0001-01-01T00:00"])
def test_other_words_are_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"like 90|later than now") as refused:
        plan(deadline=text)
    assert refused.value.param == "Job-Deadline"


def test_times_ahead_are_bounded() -> None:
    with pytest.raises(InvalidRequest, match="30 days ahead at most"):
        plan(run_after="2592001")
    assert plan(deadline=str(31 * DAY // 1000)).deadline == NOW + 31 * DAY
    with pytest.raises(InvalidRequest, match="31 days ahead at most"):
        plan(deadline="9999-12-31")


def test_member_is_bounded_as_the_header_is() -> None:
    last = NOON + timedelta(days=30)
    assert plan(Wishes(run_after=last)).run_after == NOW + 30 * DAY
    for late in (last + timedelta(milliseconds=1), datetime.max):
        with pytest.raises(InvalidRequest, match="'runAfter' may be 30 days ahead") as refused:
            plan(Wishes(run_after=late))
        assert refused.value.param == "runAfter"


@pytest.mark.parametrize("text", ["0", "2026-11-23T11:59:59Z"])
def test_deadline_that_has_passed_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="later than now"):
        plan(deadline=text)


def test_deadline_before_the_job_may_begin_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="the job waits"):
        plan(deadline="60", run_after="60")
    with pytest.raises(InvalidRequest, match="the job waits"):
        plan(Wishes(run_after=NOON.replace(hour=13)), deadline="60")
    assert plan(deadline="61", run_after="60").deadline == NOW + 61_000


def test_header_goes_before_the_member() -> None:
    wishes = Wishes(run_after=NOON.replace(hour=13), priority=-7)
    assert plan(wishes, run_after="5", priority="-3") == Plan(NOW + 5_000, None, -3)
    assert plan(wishes) == Plan(NOW + HOUR, None, -7)


@pytest.mark.parametrize("text", ["", "high", "1.5", "101", "-101", "99999"])
def test_priority_is_a_whole_number_in_bounds(text: str) -> None:
    with pytest.raises(InvalidRequest, match="whole number from -100 to 100"):
        plan(priority=text)


def test_only_an_administrator_may_raise_priority() -> None:
    assert plan(priority="-100").priority == -100
    assert plan(priority="0").priority == 0
    assert plan(caller=ADMINISTRATOR, priority="+100").priority == 100
    with pytest.raises(Forbidden, match="Only an administrator"):
        plan(priority="1")
    assert plan(Wishes(priority=5)).priority == 0

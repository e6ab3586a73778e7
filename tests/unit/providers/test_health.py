"""What failures mean: who is left alone, for how long, and how it comes back."""

import pytest

from aiserver.providers.health import (
    LACKING_SECONDS,
    MOST_COOLING_SECONDS,
    MOST_LACKING,
    MOST_OPEN_SECONDS,
    MOST_RETRY_AFTER,
    FailureKind,
    Health,
    State,
)
from fakes.providers import StillClock

BLAMED = (
    FailureKind.UNREACHABLE,
    FailureKind.TIMEOUT,
    FailureKind.RESET,
    FailureKind.BROKEN,
    FailureKind.OVERLOADED,
)


class Patient:
    """A provider's health and the clock that it lives by."""

    def __init__(self) -> None:
        self.clock = StillClock()
        self.health = Health(self.clock)

    def state(self, model: str = "m") -> State:
        return self.health.state(model, self.clock.monotonic())

    def fails(self, kind: FailureKind = FailureKind.OVERLOADED, times: int = 1) -> None:
        for _ in range(times):
            self.health.failed(kind, self.health.round, "m")

    def succeeds(self, times: int = 1) -> None:
        for _ in range(times):
            self.health.succeeded(self.health.round, "m")

    def after(self, seconds: float) -> State:
        self.clock.seconds += seconds
        return self.state()


@pytest.fixture
def patient() -> Patient:
    return Patient()


@pytest.mark.parametrize("kind", BLAMED)
def test_one_failure_changes_nothing(patient: Patient, kind: FailureKind) -> None:
    patient.fails(kind)
    assert patient.state() is State.READY
    assert patient.health.calm


def test_half_of_five_outcomes_opens_the_breaker(patient: Patient) -> None:
    patient.succeeds(2)
    patient.fails(times=2)
    assert patient.state() is State.READY
    patient.fails()
    assert patient.state() is State.FAILING


def test_few_failures_among_many_calls_are_borne(patient: Patient) -> None:
    for _ in range(50):
        patient.succeeds(2)
        patient.fails(FailureKind.RESET)
    assert patient.state() is State.READY


def test_old_failures_count_no_more(patient: Patient) -> None:
    patient.fails(times=4)
    patient.clock.seconds += 31
    patient.fails(times=4)
    assert patient.state() is State.READY
    patient.fails()
    assert patient.state() is State.FAILING


def test_window_moves_bit_by_bit(patient: Patient) -> None:
    for _ in range(40):
        patient.fails()
        patient.clock.seconds += 8
    assert patient.state() is State.READY


def test_open_time_doubles_up_to_a_minute(patient: Patient) -> None:
    patient.fails(times=5)
    for seconds in (5, 10, 20, 40, 60, 60):
        assert patient.after(seconds - 0.1) is State.FAILING
        assert patient.after(0.1) is State.TRIAL
        patient.fails()
    assert seconds == MOST_OPEN_SECONDS


def test_success_after_the_open_time_closes(patient: Patient) -> None:
    patient.fails(times=5)
    assert patient.after(5) is State.TRIAL
    assert patient.health.succeeded(patient.health.round, "m") is State.READY
    assert patient.state() is State.READY
    patient.fails(times=4)
    assert patient.state() is State.READY


def test_call_from_before_neither_ends_nor_prolongs(patient: Patient) -> None:
    before = patient.health.round
    patient.fails(times=5)
    assert patient.health.succeeded(before, "m") is None
    patient.health.failed(FailureKind.RESET, before, "m")
    assert patient.state() is State.FAILING
    assert patient.after(5) is State.TRIAL


def test_one_trial_at_a_time(patient: Patient) -> None:
    patient.fails(times=5)
    patient.after(5)
    patient.health.trying = True
    assert patient.state() is State.FAILING
    patient.succeeds()
    assert patient.state() is State.READY


@pytest.mark.parametrize("kind", [FailureKind.REQUEST, FailureKind.MODEL_MISSING])
def test_answer_that_refuses_blames_nobody(patient: Patient, kind: FailureKind) -> None:
    patient.fails(kind, times=50)
    assert patient.state("another") is State.READY
    patient.fails(times=5)
    patient.after(5)
    patient.fails(kind)
    assert patient.state("another") is State.READY


def test_lacking_model_is_avoided_for_five_minutes(patient: Patient) -> None:
    patient.fails(FailureKind.MODEL_MISSING)
    assert patient.state("m") is State.LACKING
    assert patient.state("another") is State.READY
    assert not patient.health.calm
    assert patient.after(LACKING_SECONDS) is State.READY
    assert patient.health.calm


def test_lacking_model_that_answers_is_back(patient: Patient) -> None:
    patient.fails(FailureKind.MODEL_MISSING)
    patient.succeeds()
    assert patient.state() is State.READY


def test_lacking_models_are_bounded(patient: Patient) -> None:
    for number in range(MOST_LACKING + 1):
        patient.health.failed(FailureKind.MODEL_MISSING, 0, f"m{number}")
    assert patient.state("m0") is State.READY
    assert patient.state("m1") is patient.state(f"m{MOST_LACKING}") is State.LACKING
    assert len(patient.health._lacking) == MOST_LACKING


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [(7.0, 7.0), (0.0, 1.0), (-3.0, 1.0), (float("nan"), 1.0), (86400.0, MOST_RETRY_AFTER)],
)
def test_limited_provider_rests_as_it_asks(patient: Patient, asked: float, seconds: float) -> None:
    patient.health.failed(FailureKind.LIMITED, 0, "m", retry_after=asked)
    assert patient.after(seconds - 0.1) is State.COOLING
    assert patient.health.cooling_ends(patient.clock.seconds) is not None
    assert patient.after(0.2) is State.READY


def test_rest_grows_while_it_is_refused_again(patient: Patient) -> None:
    for seconds in (2, 4, 8, 16, 30, 30):
        patient.fails(FailureKind.LIMITED, times=10)
        assert patient.after(seconds - 0.1) is State.COOLING
        assert patient.after(0.2) is State.READY
    assert seconds == MOST_COOLING_SECONDS
    patient.succeeds()
    patient.fails(FailureKind.LIMITED)
    assert patient.after(2) is State.READY


def test_success_of_an_earlier_call_ends_no_rest(patient: Patient) -> None:
    patient.fails(FailureKind.LIMITED)
    patient.succeeds()
    assert patient.state() is State.COOLING


def test_limits_are_no_failures(patient: Patient) -> None:
    for _ in range(20):
        patient.fails(FailureKind.LIMITED)
        patient.after(60)
    assert patient.state() is State.READY


def test_three_times_unreachable_is_offline(patient: Patient) -> None:
    patient.fails(FailureKind.UNREACHABLE, times=2)
    patient.succeeds(5)
    patient.fails(FailureKind.UNREACHABLE, times=2)
    assert patient.state() is State.READY
    patient.fails(FailureKind.UNREACHABLE)
    assert patient.state() is State.OFFLINE
    assert patient.health.offline_since == patient.clock.now()
    assert patient.after(3600) is State.OFFLINE


def test_call_that_is_answered_brings_it_back(patient: Patient) -> None:
    patient.fails(FailureKind.UNREACHABLE, times=3)
    patient.succeeds()
    assert patient.state() is State.READY
    assert patient.health.offline_since is None


def test_refused_credentials_stay_refused(patient: Patient) -> None:
    before = patient.health.round
    patient.fails(FailureKind.CREDENTIALS)
    patient.health.succeeded(before, "m")
    assert patient.after(3600) is State.MISCONFIGURED


def test_probe_says_who_is_back(patient: Patient) -> None:
    patient.fails(FailureKind.UNREACHABLE, times=3)
    assert patient.health.probed(FailureKind.UNREACHABLE) is None
    assert patient.state() is State.OFFLINE
    assert patient.health.probed(None) is State.READY
    assert patient.state() is State.READY


def test_probe_that_fails_takes_offline(patient: Patient) -> None:
    assert patient.health.probed(FailureKind.TIMEOUT) is State.OFFLINE
    assert patient.health.probed(FailureKind.CREDENTIALS) is State.MISCONFIGURED
    assert patient.health.probed(FailureKind.REQUEST) is None
    assert patient.state() is State.MISCONFIGURED
    assert patient.health.probed(None) is State.READY


def test_probe_that_is_refused_proves_it_is_there(patient: Patient) -> None:
    patient.fails(FailureKind.UNREACHABLE, times=3)
    assert patient.health.probed(FailureKind.MODEL_MISSING) is State.READY


def test_administrators_word_is_final() -> None:
    clock = StillClock()
    health = Health(clock, taken_offline=True)
    health.succeeded(0, "m")
    health.probed(None)
    assert health.state("m", clock.monotonic()) is State.TAKEN_OFFLINE
    assert not health.calm

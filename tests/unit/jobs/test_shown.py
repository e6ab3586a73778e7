"""How a job looks to those who ask for it."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiserver.jobs.job import JOB_COLUMNS, FailureKind, Job, State
from aiserver.jobs.records import BackgroundJobBase, BackgroundJobState
from aiserver.jobs.shown import JobFailed, duration_ms, error_of, record, state_of, summary

NOW = 1_800_000_000_000


def job_of(state: State, **members: Any) -> Job:
    given: dict[str, Any] = dict.fromkeys(JOB_COLUMNS)
    given |= {
        "id": 5,
        "ref_id": "ref-5",
        "key_id": 7,
        "operation": "TextToImage",
        "kind": "media",
        "model": "flux",
        "provider": "",
        "priority": 0,
        "max_attempts": 3,
        "attempt": 1,
        "state": state,
        "created": NOW - 10_000,
        "logs": "",
        "vtag": 0,
    }
    return Job(**given | members)


@pytest.mark.parametrize("state", State)
def test_every_state_has_a_word_of_the_contract(state: State) -> None:
    shown = state_of(job_of(state))
    assert shown is not BackgroundJobState.EXECUTED
    assert (shown is BackgroundJobState.QUEUED) == (state in (State.QUEUED, State.SCHEDULED))


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (FailureKind.REQUEST, 422),
        (FailureKind.UPSTREAM, 502),
        (FailureKind.DEADLINE, 504),
        (FailureKind.SERVER, 500),
        (FailureKind.LOST, 500),
        (None, 500),
    ],
)
def test_failed_job_has_the_status_of_who_was_at_fault(
    kind: FailureKind | None, status: int
) -> None:
    error = JobFailed(
        job_of(State.FAILED, error_kind=kind, error_code="Broken", error_message="It broke.")
    )
    assert (error.http_status, error.error_code, error.message) == (status, "Broken", "It broke.")
    assert error.meta == {"jobId": "5", "refId": "ref-5", "jobState": "Failed"}


def test_cancelled_job_says_so() -> None:
    error = JobFailed(job_of(State.CANCELLED))
    assert (error.http_status, error.error_code) == (409, "Cancelled")
    assert error.message == "The job was cancelled."


def test_job_that_is_tried_again_has_not_failed() -> None:
    job = job_of(State.QUEUED, error_code="Broken", error_message="It broke.")
    assert error_of(job) is None
    shown = record(BackgroundJobBase, job, now=NOW)
    assert shown.error is not None
    assert shown.error.message == "It broke."


def test_duration_is_of_the_last_attempt() -> None:
    times = {"started": NOW - 3_000}
    assert duration_ms(job_of(State.STARTED, **times), NOW) == 3_000
    assert duration_ms(job_of(State.COMPLETED, **times, ended=NOW - 1_000), NOW) == 2_000
    assert duration_ms(job_of(State.QUEUED, **times), NOW) == 0
    assert duration_ms(job_of(State.QUEUED), NOW) == 0


def test_record_has_what_was_asked_and_answered() -> None:
    job = job_of(
        State.COMPLETED,
        request=b'{"prompt":"\xc3\xa9"}',
        result=b'{"results":[]}',
        provider="comfy",
        worker="comfy-2",
        started=NOW - 3_000,
        ended=NOW,
        deadline=NOW + 57_000,
    )
    shown = record(BackgroundJobBase, job, now=NOW, answer_of={"TextToImage": "ImageResponse"}.get)
    assert (shown.request, shown.request_body) == ("TextToImage", '{"prompt":"é"}')
    assert (shown.response, shown.response_body) == ("ImageResponse", '{"results":[]}')
    assert shown.args == {"KeyId": "7", "Provider": "comfy"}
    assert (shown.worker, shown.retry_limit, shown.timeout_secs) == ("comfy-2", 2, 60)
    assert shown.completed_date == datetime.fromtimestamp(NOW / 1000, UTC)


def test_forgotten_content_is_left_out() -> None:
    shown = msgspec.to_builtins(record(BackgroundJobBase, job_of(State.COMPLETED), now=NOW))
    assert shown["requestBody"] == ""
    assert not {"response", "responseBody", "logs"} & shown.keys()


@given(
    started=st.none() | st.integers(0, 2**53),
    ended=st.none() | st.integers(0, 2**53),
    state=st.sampled_from(State),
    body=st.none() | st.binary(max_size=20),
    deadline=st.none() | st.integers(0, 2**53),
)
def test_any_row_can_be_shown(
    started: int | None,
    ended: int | None,
    state: State,
    body: bytes | None,
    deadline: int | None,
) -> None:
    job = job_of(state, started=started, ended=ended, request=body, result=body, deadline=deadline)
    assert record(BackgroundJobBase, job, now=NOW).duration_ms >= 0
    assert summary(job, now=NOW).duration_ms >= 0


def test_time_past_all_times_can_be_shown() -> None:
    shown = record(BackgroundJobBase, job_of(State.SCHEDULED, run_after=2**53), now=NOW)
    assert shown.run_after is not None
    assert shown.run_after.year == 9999

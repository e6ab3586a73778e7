"""Times as callers write them."""

import pytest

from aiserver.contract.errors import InvalidRequest
from aiserver.transforms.av.times import end_seconds, start_seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0:01", 1.0),
        ("00:01", 1.0),
        ("1:05", 65.0),
        ("120:00", 7200.0),
        ("01:02:03", 3723.0),
        ("01:02:03.250", 3723.25),
        ("0:01.5", 1.5),
        ("65", 65.0),
        ("65.25", 65.25),
        (" 3 ", 3.0),
    ],
)
def test_times_are_read_in_every_form(text: str, seconds: float) -> None:
    assert start_seconds(text) == seconds
    assert end_seconds(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["invalid", "", "1:5", "1:60", "1:60:00", "::", "-1", "1e3", "nan", "١:٠٥", "0x10", "1:00;rm"],
)
def test_other_starts_are_refused_with_the_forms(text: str) -> None:
    with pytest.raises(
        InvalidRequest, match=r"Invalid start time format\. Expected m:ss"
    ) as caught:
        start_seconds(text)
    assert caught.value.param == "startTime"


def test_other_ends_are_refused_with_the_forms() -> None:
    with pytest.raises(InvalidRequest, match=r"Invalid end time format\. Expected m:ss"):
        end_seconds("invalid")


@pytest.mark.parametrize("text", [None, "", "-1", "-"])
def test_no_end_means_to_the_end(text: str | None) -> None:
    assert end_seconds(text) is None

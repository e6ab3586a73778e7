"""Dates, durations, enums and ids in every form that a typed client writes."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from enum import Enum, IntEnum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiserver.contract.binding import Binder
from aiserver.contract.errors import InvalidRequest
from aiserver.contract.responses import Wire
from aiserver.contract.scalars import read_datetime, read_duration


class ImageOutputFormat(Enum):
    JPG = "jpg"
    WEBP = "webp"
    TOP_LEFT = "topLeft"
    JsonObject = "json_object"


class TaskType(IntEnum):
    TextToImage = 1
    SpeechToText = 8


class Inner(Wire, kw_only=True):
    format: ImageOutputFormat | None = None
    inner: "Inner | None" = None


class Sample(Wire, kw_only=True):
    when: datetime | None = None
    span: timedelta | None = None
    format: ImageOutputFormat | None = None
    formats: list[ImageOutputFormat] | None = None
    task: TaskType | None = None
    guid: UUID | None = None
    content: bytes | None = None
    flag: bool | None = None
    count: int | None = None
    ratio: float | None = None
    inner: Inner | None = None


BINDER = Binder(Sample)
NOON = datetime(2026, 5, 9, 12, 34, 56, tzinfo=UTC)


def bound(name: str, value: Any) -> Any:
    return getattr(BINDER.bind({name: value}), name)


@pytest.mark.parametrize(
    ("text", "microseconds"),
    [
        ("2026-05-09T12:34:56Z", 0),
        ("2026-05-09T12:34:56.1Z", 100_000),
        ("2026-05-09T12:34:56.123Z", 123_000),
        ("2026-05-09T12:34:56.1234567Z", 123_456),
        ("2026-05-09T14:34:56+02:00", 0),
        ("2026-05-09T12:34:56", 0),
        ("2026-05-09 12:34:56.5", 500_000),
        ("/Date(1778330096000)/", 0),
        ("/Date(1778330096123-0000)/", 123_000),
        ("/Date(1778330096000+0200)/", 0),
    ],
)
def test_date_comes_in_every_form(text: str, microseconds: int) -> None:
    assert bound("when", text) == NOON.replace(microsecond=microseconds)
    assert bound("when", text).tzinfo is UTC


def test_moment_beyond_utc_is_the_nearest() -> None:
    assert bound("when", "0001-01-01T00:00:00+14:00") == datetime.min.replace(tzinfo=UTC)
    assert bound("when", "9999-12-31T23:59:59-14:00") == datetime.max.replace(tzinfo=UTC)


def test_bare_date_is_midnight() -> None:
    assert bound("when", "2026-05-09") == datetime(2026, 5, 9, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("PT1M30S", 90),
        ("PT1.5S", 1.5),
        ("P1DT1S", 86401),
        ("00:01:30", 90),
        ("00:01:30.5", 90.5),
        ("1.00:00:01", 86401),
        ("01:30", 5400),
        ("-00:00:01", -1),
    ],
)
def test_duration_comes_in_every_form(text: str, seconds: float) -> None:
    assert bound("span", text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "value", ["webp", "Webp", "WEBP", "ImageOutputFormat.WEBP", "imageoutputformat.webp", 1, "1"]
)
def test_enum_comes_in_every_form(value: Any) -> None:
    assert bound("format", value) is ImageOutputFormat.WEBP
    assert bound("formats", [value, "jpg"]) == [ImageOutputFormat.WEBP, ImageOutputFormat.JPG]


@pytest.mark.parametrize("value", ["json_object", "JsonObject", "jsonObject", "JSON_OBJECT", 3])
def test_enum_forgets_underscores(value: Any) -> None:
    assert bound("format", value) is ImageOutputFormat.JsonObject


@pytest.mark.parametrize(
    "value", [8, "8", "SpeechToText", "speech_to_text", "TaskType.SpeechToText"]
)
def test_numbered_enum_keeps_its_numbers(value: Any) -> None:
    assert bound("task", value) is TaskType.SpeechToText


@pytest.mark.parametrize(
    "text", ["0f8fad5bd9cb469fa16570867728950e", "0F8FAD5B-D9CB-469F-A165-70867728950E"]
)
def test_guid_comes_with_and_without_dashes(text: str) -> None:
    assert bound("guid", text) == UUID("0f8fad5b-d9cb-469f-a165-70867728950e")


def test_bytes_are_base64() -> None:
    assert bound("content", "aGVsbG8=") == b"hello"


@pytest.mark.parametrize(
    ("text", "flag"), [("true", True), ("True", True), ("1", True), ("FALSE", False)]
)
def test_flags_are_words_and_numbers(text: str, flag: bool) -> None:
    assert bound("flag", text) is flag


def test_numbers_may_be_text() -> None:
    assert bound("count", "5") == 5
    assert bound("ratio", "0.5") == 0.5


def test_enum_is_read_at_every_depth() -> None:
    sent: dict[str, Any] = {"inner": {"Inner": {"Format": "TopLeft"}}}
    inner = BINDER.bind(sent).inner
    assert inner is not None
    assert inner.inner is not None
    assert inner.inner.format is ImageOutputFormat.TOP_LEFT
    assert sent == {"inner": {"inner": {"format": "TopLeft"}}}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("when", "soon"),
        ("when", "/Date(x)/"),
        ("when", "/Date(999999999999999)/"),
        ("span", "1:2:3:4"),
        ("format", "tiff"),
        ("format", 99),
        ("format", True),
        ("guid", "0f8fad5b"),
        ("content", "***"),
        ("count", "5.5"),
    ],
)
def test_what_does_not_convert_names_its_field(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        bound(name, value)
    assert caught.value.param == name
    assert caught.value.fields[0].error_code == "RequestBindingException"


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    kinds = {"when": datetime, "span": timedelta, "format": ImageOutputFormat, "task": TaskType}
    for name, kind in kinds.items():
        with suppress(InvalidRequest):
            assert bound(name, text) is None or isinstance(bound(name, text), kind)


@given(st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(2200, 1, 1)))
def test_every_moment_survives_both_forms(moment: datetime) -> None:
    utc = moment.replace(tzinfo=UTC, microsecond=moment.microsecond // 1000 * 1000)
    milliseconds = round(utc.timestamp() * 1000)
    assert read_datetime(utc.isoformat()) == read_datetime(f"/Date({milliseconds})/") == utc


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=9999)))
def test_every_duration_survives_the_clock_form(span: timedelta) -> None:
    hours, rest = divmod(span.seconds, 3600)
    text = f"{span.days}.{hours:02}:{rest // 60:02}:{rest % 60:02}.{span.microseconds:06}"
    assert read_duration(text) == span

"""Binding: every spelling of a declared member, nothing of what is data, one error per field."""

from contextlib import suppress
from datetime import UTC, datetime
from enum import Enum
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from aiserver.contract.binding import Binder
from aiserver.contract.errors import InvalidRequest
from aiserver.contract.responses import Wire


class Part(Wire, kw_only=True):
    part_name: str | None = None
    schema: Any = None
    parts: list["Part"] | None = None


class Finish(Enum):
    MATT = "matt"
    GLOSS = "gloss"


class Sample(Wire, kw_only=True):
    long_name: Annotated[str, Meta(min_length=1)]
    max_tokens: int | None = msgspec.field(default=None, name="max_tokens")
    width: Annotated[int, Meta(ge=64, le=2048)] | None = None
    flag: bool | None = None
    when: datetime | None = None
    names: list[str] | None = None
    numbers: list[int] | None = None
    part: Part | None = None
    parts: list[Part] | None = None
    by_name: dict[str, Part] | None = None
    meta: dict[str, Any] | None = None
    finish: Finish | None = None
    either: str | dict[str, Any] | None = None


BINDER = Binder(Sample)


def bind(members: dict[str, Any] | None = None, *pairs: tuple[str, str]) -> Sample:
    return BINDER.bind({"longName": "x"} if members is None else members, pairs)


def errors(members: dict[str, Any], *pairs: tuple[str, str]) -> list[tuple[str, str]]:
    with pytest.raises(InvalidRequest) as caught:
        bind(members, *pairs)
    return [(e.field_name, e.error_code) for e in caught.value.fields]


@pytest.mark.parametrize(
    "name", ["max_tokens", "maxTokens", "MaxTokens", "MAX_TOKENS", "maxtokens"]
)
def test_member_binds_in_any_spelling(name: str) -> None:
    assert bind({"longName": "x", name: 50}).max_tokens == 50
    assert bind(None, (name, "50")).max_tokens == 50


def test_spelling_reaches_every_declared_depth() -> None:
    members = {
        "LongName": "x",
        "Part": {"PartName": "a", "Parts": [{"part_name": "b"}]},
        "Parts": [{"PARTNAME": "c"}],
        "ByName": {"my_key": {"part_name": "d"}},
    }
    bound = bind(members)
    assert bound.part is not None
    assert bound.part.parts is not None
    assert bound.parts is not None
    assert bound.by_name is not None
    assert bound.part.part_name == "a"
    assert bound.part.parts[0].part_name == "b"
    assert bound.parts[0].part_name == "c"
    assert bound.by_name["my_key"].part_name == "d"


@pytest.mark.parametrize("member", ["meta", "numbers", "when"])
def test_text_nested_too_deeply_is_refused(member: str) -> None:
    deep = '{"a":' * 5000 + "1" + "}" * 5000
    assert [code for _, code in errors({"longName": "x"}, (member, deep))] == [
        "RequestBindingException"
    ]


@given(
    st.dictionaries(
        st.sampled_from([field.encode_name for field in msgspec.structs.fields(Sample)]),
        st.recursive(
            st.none() | st.booleans() | st.integers(-5, 3000) | st.sampled_from(["", "5", "x"]),
            lambda below: (
                st.lists(below, max_size=2)
                | st.dictionaries(st.sampled_from(["partName", "parts", "x"]), below, max_size=2)
            ),
        ),
    )
)
def test_whole_conversion_agrees_with_the_one_by_field(members: dict[str, Any]) -> None:
    try:
        whole: Any = BINDER._convert(members)
    except InvalidRequest as problem:
        whole = [(e.field_name, e.error_code) for e in problem.fields]
    try:
        by_field: Any = BINDER._by_field(members)
    except InvalidRequest as problem:
        by_field = [(e.field_name, e.error_code) for e in problem.fields]
    assert whole == by_field


def test_data_is_never_respelled() -> None:
    schema = {"maxTokens": 1, "max_tokens": 2, "MaxTokens": 3, "LongName": {"PartName": 4}}
    members = {"longName": "x", "meta": dict(schema), "part": {"schema": dict(schema)}}
    bound = bind(members)
    assert bound.meta == schema
    assert bound.part is not None
    assert bound.part.schema == schema
    assert members["meta"] == schema


def test_unknown_members_stay_as_sent() -> None:
    members = {"longName": "x", "Unknown_Thing": {"LongName": 1}}
    bind(members)
    assert members["Unknown_Thing"] == {"LongName": 1}


def test_exact_spelling_wins() -> None:
    assert bind({"longName": "x", "MaxTokens": 1, "max_tokens": 2}).max_tokens == 2


def test_null_and_empty_mean_not_given() -> None:
    bound = bind({"longName": "x", "width": None}, ("width", ""), ("flag", ""), ("unknown", "1"))
    assert bound.width is None
    assert bound.flag is None


def test_body_wins_over_query() -> None:
    assert bind({"longName": "x", "width": 100}, ("width", "200")).width == 100
    assert bind({"longName": "x", "width": None}, ("width", "200")).width == 200


@pytest.mark.parametrize("text", ["a,b", "[a,b]", '["a","b"]', "[a, b]"])
def test_lists_come_in_every_form(text: str) -> None:
    assert bind(None, ("names", text)).names == ["a", "b"]


def test_text_converts_to_declared_types() -> None:
    bound = bind(
        None,
        ("numbers", "1,2"),
        ("flag", "true"),
        ("when", "2026-05-09T12:34:56Z"),
        ("part", '{"part_name":"a"}'),
    )
    assert bound.numbers == [1, 2]
    assert bound.flag is True
    assert bound.when == datetime(2026, 5, 9, 12, 34, 56, tzinfo=UTC)


def test_text_that_looks_like_json_stays_text() -> None:
    assert bind({}, ("longName", "[a,b]")).long_name == "[a,b]"


def test_unknown_member_of_a_list_is_told_the_known_ones() -> None:
    with pytest.raises(InvalidRequest, match="enum value 'silk'; known are matt, gloss"):
        bind({"longName": "x", "finish": "silk"})


def test_every_wrong_field_gets_its_own_error() -> None:
    members = {"width": 1, "flag": "maybe", "when": "soon", "parts": [{"partName": 5}]}
    assert errors(members) == [
        ("LongName", "NotEmpty"),
        ("Width", "GreaterThanOrEqual"),
        ("Flag", "RequestBindingException"),
        ("When", "RequestBindingException"),
        ("Parts[0].partName", "RequestBindingException"),
    ]


def test_empty_required_text_is_missing() -> None:
    assert errors({"longName": ""}) == [("LongName", "NotEmpty")]
    with pytest.raises(InvalidRequest, match="'Long Name' must not be empty"):
        bind({})


def test_union_takes_either() -> None:
    assert bind({"longName": "x", "either": "a"}).either == "a"
    assert bind({"longName": "x", "either": {"Max_Tokens": 1}}).either == {"Max_Tokens": 1}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.text() | st.sampled_from(Sample.__struct_fields__), VALUES),
    st.lists(st.tuples(st.text() | st.sampled_from(Sample.__struct_fields__), st.text())),
)
def test_anything_binds_or_is_refused(
    members: dict[str, Any], pairs: list[tuple[str, str]]
) -> None:
    with suppress(InvalidRequest):
        assert isinstance(BINDER.bind(members, pairs), Sample)

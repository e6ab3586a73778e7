"""Errors name types by what they are called outside of Python."""

from typing import Annotated, Any

import msgspec
import pytest

from aiserver.contract.wording import Wrong, plainly


def told(value: Any, declared: Any) -> Wrong:
    with pytest.raises(msgspec.ValidationError) as error:
        msgspec.convert(value, declared, strict=False)
    return plainly(str(error.value))


class Message(msgspec.Struct):
    role: str


@pytest.mark.parametrize(
    ("value", "declared", "text"),
    [
        ("abc", int | None, "expected a whole number, got text"),
        (5, str, "expected text, got a whole number"),
        ("x", list[int], "expected a list, got text"),
        ({}, bool, "expected true or false, got an object"),
        ("x", int | float, "expected a number, got text"),
        (None, int, "expected a whole number, got null"),
        (0, Annotated[int, msgspec.Meta(ge=1)], "expected a whole number >= 1"),
        ({}, Message, "object missing required field 'role'"),
    ],
)
def test_types_have_their_everyday_names(value: Any, declared: Any, text: str) -> None:
    assert told(value, declared) == (text, "")


def test_place_inside_the_value_is_told() -> None:
    assert told([{"role": 5}], list[Message]) == ("expected text, got a whole number", "[0].role")

"""Canary keys go in, masks come out."""

import pytest

from aiserver.kit.redact import Redactor

CANARIES = [
    "ak-0123456789abcdef0123456789abcdef",
    "as-0123456789abcdef0123456789abcdef01234567",
    "sk-proj-abcdefghijklmnopqrstuvwxyz0123456789",
    "gsk_abcdefghijklmnopqrstuvwxyz0123456789ABCDEF",
    "AIzaSyA-abcdefghijklmnopqrstuvwxyz0123456",
    "r8_abcdefghijklmnopqrstuvwxyz0123456789",
]


@pytest.mark.parametrize("canary", CANARIES)
@pytest.mark.parametrize(
    "around",
    ["{}", "key {} is wrong", '{{"apiKey":"{}"}}', "Bearer {}", "?key={}&x=1", "({})", "'{}',"],
)
def test_known_forms_are_masked_anywhere(canary: str, around: str) -> None:
    assert canary not in Redactor()(around.format(canary))


@pytest.mark.parametrize(
    "line",
    [
        "Authorization: Bearer canary-value-1",
        "authorization: basic canary-value-1",
        '{"Authorization": "canary-value-1"}',
        "X-Api-Key: canary-value-1",
        '{"api_key": "canary-value-1"}',
        "https://host/path?key=canary-value-1&x=2",
        "authsecret=canary-value-1",
        '"password":"canary-value-1"',
    ],
)
def test_values_of_secret_names_are_masked(line: str) -> None:
    masked = Redactor()(line)
    assert "canary" not in masked
    assert "***" in masked


def test_learned_secret_is_masked_everywhere() -> None:
    redact = Redactor()
    redact.learn("an odd secret $(x)")
    redact.learn("an odd secret $(x) that is longer")
    assert (
        redact("a: an odd secret $(x) that is longer, b: an odd secret $(x).") == "a: ***, b: ***."
    )


def test_short_words_are_not_learned() -> None:
    redact = Redactor()
    redact.learn("chat")
    assert redact("chat works") == "chat works"


def test_ordinary_text_stays() -> None:
    text = 'Model sk-1 not found; task-oriented desk, "model":"gpt-4o", ak-47, keyboard: x'
    assert Redactor()(text) == text

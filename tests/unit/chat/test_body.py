"""What goes upstream is what the caller sent, less what was meant for the gateway."""

import json
from typing import Any

from aiserver.chat.adapters.openai import body_for


def sent(members: dict[str, Any], *, ask_usage: bool = False) -> dict[str, Any]:
    return json.loads(body_for(members, model="upstream-name", ask_usage=ask_usage))


def test_unknown_members_pass_through() -> None:
    members = {"model": "m", "messages": [], "future_thing": {"a": [1, 2.5, None]}, "min_p": 0.1}
    assert sent(members) == {**members, "model": "upstream-name"}


def test_empty_lists_of_typed_clients_stay_here() -> None:
    members = {"model": "m", "messages": [{"role": "user", "images": []}, {"images": ["a"]}]}
    assert sent(members)["messages"] == [{"role": "user"}, {"images": ["a"]}]


def test_own_members_stay_here() -> None:
    members = {"model": "m", "refId": "1", "tag": "t", "replyTo": "u", "messages": []}
    for provider in ("p", None):
        wanted = {"model": "upstream-name", "messages": []}
        assert sent({**members, "provider": provider}) == wanted


def test_provider_object_passes_through() -> None:
    members = {"model": "m", "messages": [], "provider": {"order": ["a"]}}
    assert sent(members)["provider"] == {"order": ["a"]}


def test_usage_is_asked_beside_the_callers_options() -> None:
    members = {"model": "m", "stream_options": {"include_obfuscation": False}}
    assert sent(members, ask_usage=True)["stream_options"] == {
        "include_obfuscation": False,
        "include_usage": True,
    }
    assert members["stream_options"] == {"include_obfuscation": False}


def test_older_response_format_is_understood() -> None:
    members = {"model": "m", "response_format": {"response_format": "json_object"}}
    assert sent(members)["response_format"] == {"type": "json_object"}
    members = {"model": "m", "response_format": {"type": "json_object"}}
    assert sent(members)["response_format"] == {"type": "json_object"}

"""What goes upstream is what the caller sent, less what was meant for the gateway."""

import json
from typing import Any

import pytest

from aiserver.chat.adapters.adapter import Chat
from aiserver.chat.adapters.openai import OpenAiAdapter
from aiserver.chat.handlers import normal_form
from aiserver.providers.catalogue import BY_ID
from aiserver.providers.endpoints import Endpoint


def sent(
    members: dict[str, Any],
    *,
    stream: bool = False,
    wants_usage: bool = False,
    kind: str = "Custom",
) -> dict[str, Any]:
    chat = Chat(
        members=normal_form(members),
        model="m",
        stream=stream,
        wants_usage=wants_usage,
        request_id="r",
        created=0,
    )
    endpoint = Endpoint("http://127.0.0.1/v1", (), BY_ID[kind])
    outgoing = OpenAiAdapter().request(chat, endpoint, model="upstream-name", provider="p")
    assert outgoing.path == "/chat/completions"
    return json.loads(outgoing.body)


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
    assert sent(members, stream=True)["stream_options"] == {
        "include_obfuscation": False,
        "include_usage": True,
    }
    assert members["stream_options"] == {"include_obfuscation": False}


def test_usage_is_asked_once_and_of_streams_only() -> None:
    asked = {"model": "m", "stream_options": {"include_usage": True}}
    assert sent(asked, stream=True, wants_usage=True)["stream_options"] == {"include_usage": True}
    assert "stream_options" not in sent({"model": "m"})


def test_usage_is_not_asked_of_who_refuses_the_question() -> None:
    silent = [kind for kind, row in BY_ID.items() if row.dialect == "openai" and not row.asks_usage]
    for kind in silent:
        assert "stream_options" not in sent({"model": "m"}, stream=True, kind=kind)


@pytest.mark.parametrize("given", [{"response_format": "json_object"}, {"type": "json_object"}])
def test_older_response_format_is_understood(given: dict[str, str]) -> None:
    members = {"model": "m", "response_format": given}
    assert sent(members)["response_format"] == {"type": "json_object"}

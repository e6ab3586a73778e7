"""What a chat becomes in Anthropic's dialect, and what its answers become in the normal form.

Requests are held against the fake's checks, answers against the OpenAI client's types.
"""

import base64
import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.completion_create_params import CompletionCreateParamsBase

from aiserver.chat.adapters.adapter import Chat
from aiserver.chat.adapters.anthropic import AnthropicAdapter
from aiserver.chat.adapters.anthropic_models import FAMILIES, family_of
from aiserver.chat.adapters.anthropic_request import CARRIED, DROPPED, REFUSED
from aiserver.chat.adapters.anthropic_stream import MAX_OPEN_BLOCKS, AnthropicReader
from aiserver.chat.failures import Failure
from aiserver.chat.streaming import DONE, MAX_EVENT
from aiserver.contract.errors import InvalidRequest
from aiserver.contract.trace import Usage
from aiserver.providers.catalogue import type_named
from aiserver.providers.endpoints import Endpoint
from aiserver.providers.health import FailureKind
from fakes.anthropic import SIGNATURE, check, event, frames, message_of

FIXTURES = Path(__file__).parents[3] / "fixtures" / "upstreams" / "anthropic"
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n0").decode()
JPEG = base64.b64encode(b"\xff\xd8\xff\xe0").decode()
PDF = base64.b64encode(b"%PDF-1.4").decode()
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"maxTokens": {"type": "integer"}}},
    },
}
CLOCK: Any = {"type": "function", "function": {"name": "get_time"}}
ADAPTER = AnthropicAdapter()
KIND = type_named("anthropic")
assert KIND is not None
ENDPOINT = Endpoint("https://api.anthropic.com/v1", (), KIND)
USER: Any = {"role": "user", "content": "the weather?"}


def chat(*, stream: bool = False, wants_usage: bool = False, **members: Any) -> Chat:
    return Chat(
        members={"messages": [USER], "model": "claude", **members},
        model="claude",
        stream=stream,
        wants_usage=wants_usage,
        request_id="r1",
        created=1_700_000_000,
    )


def asked(model: str = "claude-opus-5", **members: Any) -> Any:
    """The body that goes upstream, after the fake has accepted it."""
    body = loose(model, **members)
    check(body, "2023-06-01")
    return body


def loose(model: str = "claude-opus-5", **members: Any) -> Any:
    outgoing = ADAPTER.request(chat(**members), ENDPOINT, model=model, provider="one")
    assert outgoing.path == "/messages"
    return json.loads(outgoing.body)


def turns(*messages: Any) -> Any:
    return asked(messages=list(messages))["messages"]


def refusal(**members: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as raised:
        ADAPTER.request(chat(**members), ENDPOINT, model="claude-opus-5", provider="one")
    return raised.value


def calling(arguments: Any = '{"city":"Lima"}', id: str = "call_1") -> Any:
    function = {"name": "get_weather", "arguments": arguments}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": id, "type": "function", "function": function}],
    }


def answered(body: Any, **members: Any) -> tuple[ChatCompletion, Any, Usage | None]:
    answer = ADAPTER.answer(json.dumps(body).encode(), chat(**members), provider="one")
    plain = json.loads(answer.body)
    return ChatCompletion.model_validate(plain, strict=True), plain, answer.usage


def fixture(name: str) -> bytes:
    return (FIXTURES / name).read_bytes()


def read(data: bytes | Iterable[bytes], **members: Any) -> tuple[AnthropicReader, bytes]:
    reader = ADAPTER.reader(chat(stream=True, **members), ENDPOINT, provider="one")
    pieces = [data] if isinstance(data, bytes) else data
    given = b"".join(reader.feed(piece) for piece in pieces)
    return reader, given + (reader.end() if reader.failure is None else b"")


def chunks_of(given: bytes) -> list[ChatCompletionChunk]:
    *events, done = given.split(b"\n\n")[:-1]
    assert done == DONE.strip()
    return [
        ChatCompletionChunk.model_validate_json(item.removeprefix(b"data: ")) for item in events
    ]


def joined(given: bytes) -> Any:
    """What the OpenAI client makes of a stream, as plain values."""
    state: Any = ChatCompletionStreamState()
    for chunk in chunks_of(given):
        state.handle_chunk(chunk)
    return state.get_final_completion().model_dump(exclude_none=True)


# Requests


def test_system_messages_become_the_system_prompt():
    body = asked(
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "hi"},
            {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
        ]
    )
    assert body["system"] == "Be brief.\n\nBe kind."
    assert body["messages"] == [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]


def test_cache_marks_reach_the_upstream():
    mark = {"type": "ephemeral"}
    part = {"type": "text", "text": "long", "cache_control": mark}
    body = asked(
        messages=[
            {"role": "system", "content": [part]},
            {"role": "user", "content": "hi", "cache_control": mark},
        ],
        tools=[{**WEATHER, "cache_control": mark}],
    )
    assert body["system"] == [part]
    assert body["messages"][0]["content"][0]["cache_control"] == mark
    assert body["tools"][0]["cache_control"] == mark


def test_lone_system_message_is_asked_as_user():
    body = asked(messages=[{"role": "system", "content": "Say hello."}])
    assert body["messages"][0]["content"] == [{"type": "text", "text": "Say hello."}]
    assert "system" not in body


def test_tool_results_share_one_turn():
    two = calling()
    two["tool_calls"] += calling("", id="functions.get_time:1")["tool_calls"]
    assistant, user = turns(
        {"role": "user", "content": "first"},
        {"role": "user", "content": "second"},
        two,
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        {"role": "tool", "tool_call_id": "functions.get_time:1", "content": ""},
        {"role": "user", "content": "thanks"},
    )[1:]
    assert assistant["content"] == [
        {"type": "tool_use", "id": "call_1", "name": "get_weather", "input": {"city": "Lima"}},
        {"type": "tool_use", "id": "functions_get_time_1", "name": "get_weather", "input": {}},
    ]
    assert user["content"] == [
        {"type": "tool_result", "tool_use_id": "call_1", "content": "rain"},
        {"type": "tool_result", "tool_use_id": "functions_get_time_1"},
        {"type": "text", "text": "thanks"},
    ]


def test_past_calls_are_declared_without_tools():
    done = {"role": "tool", "tool_call_id": "call_1", "content": "rain"}
    body = asked(messages=[USER, calling(), done])
    assert body["tools"] == [{"name": "get_weather", "input_schema": {"type": "object"}}]
    assert body["tool_choice"] == {"type": "none"}


@pytest.mark.parametrize("arguments", ["{", "[1]", "{} {}", 7, "nonsense"])
def test_broken_arguments_name_their_message(arguments: Any):
    error = refusal(messages=[USER, calling(arguments)])
    assert error.message.startswith("messages[1].tool_calls[0].function.arguments: ")
    assert error.param == "messages"


def test_white_space_is_left_out():
    parts = [{"type": "text", "text": " \n"}, {"type": "text", "text": "hi"}]
    [turn] = turns(
        {"role": "user", "content": parts},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "again"},
    )
    assert [block["text"] for block in turn["content"]] == ["hi", "again"]
    assert "no text" in refusal(messages=[{"role": "user", "content": " "}]).message


def source_of(part: Any) -> Any:
    [turn] = turns({"role": "user", "content": [part]})
    return turn["content"][0]["source"]


@pytest.mark.parametrize(
    ("url", "source"),
    [
        (
            f"data:image/png;base64,{PNG}",
            {"type": "base64", "media_type": "image/png", "data": PNG},
        ),
        (
            f"data:image/jpg;base64,{JPEG}",
            {"type": "base64", "media_type": "image/jpeg", "data": JPEG},
        ),
        (
            f"data:image/png;base64,{JPEG}",
            {"type": "base64", "media_type": "image/jpeg", "data": JPEG},
        ),
        ("https://example.com/a.png", {"type": "url", "url": "https://example.com/a.png"}),
    ],
)
def test_images_become_sources(url: str, source: Any):
    assert source_of({"type": "image_url", "image_url": {"url": url}}) == source
    assert source_of({"type": "image_url", "image_url": url}) == source


def test_bare_images_of_typed_clients_are_seen():
    [turn] = turns({"role": "user", "content": "what?", "images": [PNG]})
    assert turn["content"][1]["source"]["media_type"] == "image/png"
    assert turns({"role": "user", "content": "what?", "images": []})


def test_documents_keep_their_name():
    file = {"file_data": f"data:application/pdf;base64,{PDF}", "filename": "a.pdf"}
    [turn] = turns({"role": "user", "content": [{"type": "file", "file": file}]})
    assert turn["content"] == [
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": PDF},
            "title": "a.pdf",
        }
    ]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "file", "file": {"file_data": "data:audio/wav;base64,AA=="}},
        {"type": "image_url", "image_url": {"url": "http://example.com/a.png"}},
        {"type": "image_url", "image_url": {"url": "data:image/tiff;base64,AA=="}},
        {"type": "image_url", "image_url": {"url": "data:image/png,raw"}},
        {"type": "image_url"},
        {"type": "video_url"},
        {},
        "text",
    ],
)
def test_unfit_parts_are_named(part: Any):
    error = refusal(messages=[USER, {"role": "user", "content": [part]}])
    assert error.message.startswith("messages[1].content[0]: ")
    assert (error.http_status, error.param) == (400, "messages")


@pytest.mark.parametrize(
    "message",
    [
        {"role": "function", "content": "x"},
        {"role": "tool", "content": "x"},
        {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "system", "content": [{"type": "image_url", "image_url": {"url": PNG}}]},
        {"content": "x"},
        "x",
    ],
)
def test_unfit_messages_are_named(message: Any):
    assert refusal(messages=[USER, message]).message.startswith("messages[1]")


def test_tools_arrive_unchanged():
    strict: Any = {"type": "function", "function": {**CLOCK["function"], "strict": True}}
    body = asked(tools=[WEATHER, strict])
    assert body["tools"] == [
        {
            "name": "get_weather",
            "description": "The weather of a city",
            "input_schema": WEATHER["function"]["parameters"],
        },
        {"name": "get_time", "input_schema": {"type": "object"}, "strict": True},
    ]
    assert "tool_choice" not in body
    assert "tools" not in asked(tools=[], tool_choice="auto")


@pytest.mark.parametrize(
    ("choice", "parallel", "sent"),
    [
        ("auto", None, {"type": "auto"}),
        ("none", False, {"type": "none"}),
        ("required", True, {"type": "any"}),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
        ("required", False, {"type": "any", "disable_parallel_tool_use": True}),
        (
            {"type": "function", "function": {"name": "get_time"}},
            None,
            {"type": "tool", "name": "get_time"},
        ),
    ],
)
def test_choice_of_tools(choice: Any, parallel: Any, sent: Any):
    body = asked(tools=[WEATHER, CLOCK], tool_choice=choice, parallel_tool_calls=parallel)
    assert body["tool_choice"] == sent


@pytest.mark.parametrize(
    "members",
    [
        {"tools": [{"type": "custom", "custom": {"name": "x"}}]},
        {"tools": [WEATHER], "tool_choice": "sometimes"},
        {"tools": [WEATHER], "tool_choice": {"type": "allowed_tools"}},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "grammar"}},
        {"reasoning_effort": "huge"},
        {"service_tier": "flex"},
        {"stop": 7},
        {"max_tokens": "many"},
        {"n": 2},
        {"logprobs": True},
        {"top_logprobs": 3},
        {"logit_bias": {"1": 2}},
        {"presence_penalty": 0.5},
        {"modalities": ["text", "audio"]},
        {"functions": [{"name": "x"}]},
        {"web_search_options": {}},
    ],
)
def test_what_cannot_be_carried_is_refused(members: Any):
    assert refusal(**members).param in (*members, "tools")


def test_meaningless_members_are_dropped():
    harmless: Any = {name: values[0] for name, values in REFUSED.items() if values}
    hints: Any = dict.fromkeys(DROPPED, "x")
    missing: Any = dict.fromkeys(REFUSED)
    assert asked(**hints, **harmless) == asked(**missing) == asked()


def test_every_member_of_openai_is_judged():
    members = set(CompletionCreateParamsBase.__annotations__) | {"stream"}
    assert members - CARRIED - DROPPED - REFUSED.keys() == set()
    assert not CARRIED & DROPPED
    assert not (CARRIED | DROPPED) & REFUSED.keys()


def test_unknown_members_go_on_as_sent():
    assert loose(top_k=5, container="c")["top_k"] == 5
    assert loose(top_k=5, container="c")["container"] == "c"


def test_bounds_and_samplers_are_carried():
    body = asked(
        "claude-opus-4-6",
        max_completion_tokens=50,
        max_tokens=70,
        temperature=1.7,
        stop=["END", " "],
        user=42,
        service_tier="default",
        stream=False,
    )
    assert body["max_tokens"] == 50
    assert body["temperature"] == 1
    assert body["stop_sequences"] == ["END"]
    assert body["metadata"] == {"user_id": "42"}
    assert body["service_tier"] == "standard_only"
    assert asked("claude-opus-4-6", top_p=0.5, stop="END")["top_p"] == 0.5
    assert "stop_sequences" not in asked(stop="\n")


def test_missing_limit_gets_a_default():
    assert asked()["max_tokens"] == 32_000
    assert asked("claude-3-haiku-20240307")["max_tokens"] == 4_096
    assert asked("some-other-model")["max_tokens"] == 8_192


def test_streams_are_asked_for():
    outgoing = ADAPTER.request(chat(stream=True), ENDPOINT, model="claude-opus-5", provider="one")
    assert json.loads(outgoing.body)["stream"] is True
    assert "stream" not in asked()


def test_schema_binds_the_answer():
    inner = {"type": "object", "properties": {"type": {"type": "string"}}}
    schema = {"type": "object", "properties": {"items": {"type": "array", "items": inner}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    form = asked(response_format=wanted)["output_config"]["format"]
    assert form["type"] == "json_schema"
    assert form["schema"]["additionalProperties"] is False
    assert form["schema"]["properties"]["items"]["items"] == {
        **inner,
        "additionalProperties": False,
    }
    assert "additionalProperties" not in schema


@pytest.mark.parametrize("member", ["type", "response_format"])
def test_json_mode_is_told_to_the_model(member: str):
    body = asked(
        messages=[{"role": "system", "content": "Hi."}, USER],
        response_format={member: "json_object"},
    )
    assert body["system"].startswith("Hi.\n\nAnswer with one JSON object")
    assert "system" not in asked(response_format={"type": "text"})


@pytest.mark.parametrize(
    ("model", "effort", "thinking", "config"),
    [
        ("claude-opus-5", "high", "adaptive", "high"),
        ("claude-opus-5", "none", "disabled", None),
        ("claude-opus-5", "minimal", "adaptive", "low"),
        ("claude-opus-5-5", "none", None, "low"),
        ("claude-unheard-of-9", "max", "adaptive", "max"),
        ("claude-opus-4-7", "xhigh", "adaptive", "xhigh"),
        ("claude-opus-4-7", "none", None, None),
        ("anthropic/claude-sonnet-4.6", "xhigh", "adaptive", "high"),
        ("claude-opus-4-5-20251101", "max", "enabled", "high"),
        ("claude-haiku-4-5", "low", "enabled", None),
        ("claude-haiku-4-5", "none", None, None),
        ("deepseek-chat", "medium", "enabled", None),
    ],
)
def test_effort_fits_the_model(model: str, effort: str, thinking: str | None, config: str | None):
    body = asked(model, reasoning_effort=effort)
    assert (body.get("thinking") or {}).get("type") == thinking
    assert (body.get("output_config") or {}).get("effort") == config


def test_budget_is_a_part_of_the_limit():
    body = asked("claude-haiku-4-5", reasoning_effort="medium", max_tokens=8000)
    assert body["thinking"] == {"type": "enabled", "budget_tokens": 4000}
    least = asked("claude-haiku-4-5", reasoning_effort="low", max_tokens=1100)
    assert least["thinking"]["budget_tokens"] == 1024
    assert "thinking" not in asked("claude-haiku-4-5", reasoning_effort="high", max_tokens=1000)


def test_thinking_leaves_out_what_it_excludes():
    body = asked("claude-opus-4-6", reasoning_effort="high", temperature=0.3)
    assert "temperature" not in body
    assert "top_p" not in asked("claude-opus-4-6", reasoning_effort="high", top_p=0.3)
    forced = asked(reasoning_effort="high", tools=[CLOCK], tool_choice="required")
    assert "thinking" not in forced
    assert forced["output_config"] == {"effort": "high"}


def test_own_words_of_anthropic_go_before():
    own = {"type": "adaptive", "display": "omitted"}
    body = asked(thinking=own, output_config={"effort": "low"}, reasoning_effort="high")
    assert body["thinking"] == own
    assert body["output_config"] == {"effort": "low"}


def test_budget_models_do_not_start_thinking_within_a_turn():
    done = {"role": "tool", "tool_call_id": "call_1", "content": "rain"}
    history: list[Any] = [USER, calling(), done]
    assert "thinking" not in asked("claude-haiku-4-5", messages=history, reasoning_effort="high")
    history[1]["thinking_blocks"] = [{"type": "thinking", "thinking": "hm", "signature": SIGNATURE}]
    assert "thinking" in asked("claude-haiku-4-5", messages=history, reasoning_effort="high")


def test_every_family_can_be_met():
    for family in FAMILIES[:-1]:
        assert {family_of(f"claude-{name}").names for name in family.names} == {family.names}
    assert family_of("other") is FAMILIES[-1]


@given(
    st.dictionaries(
        st.sampled_from(sorted((CARRIED | REFUSED.keys()) - {"model"})),
        st.recursive(
            st.none() | st.booleans() | st.integers(-9, 9) | st.floats(0, 2) | st.text(max_size=9),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(
                        ["role", "content", "type", "text", "function", "name", "tool_calls"]
                    ),
                    inner,
                    max_size=4,
                )
            ),
            max_leaves=9,
        ),
    )
)
def test_odd_requests_are_carried_or_refused(members: dict[str, Any]):
    with contextlib.suppress(InvalidRequest):
        assert loose(**members)["messages"]


# Answers


def test_text_blocks_become_one_message():
    completion, plain, usage = answered(json.loads(fixture("text.json")))
    [choice] = completion.choices
    assert choice.message.content == "The water is cold."
    assert choice.finish_reason == "stop"
    assert (completion.id, completion.model) == ("msg_01A", "claude-opus-5")
    assert completion.created == 1_700_000_000
    assert usage == Usage(prompt=2112, completion=9, cached=2000, cache_written=100, reasoning=0)
    assert plain["usage"] == {
        "prompt_tokens": 2112,
        "completion_tokens": 9,
        "total_tokens": 2121,
        "prompt_tokens_details": {"cached_tokens": 2000, "cache_write_tokens": 100},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def test_calls_and_thoughts_are_told():
    completion, plain, usage = answered(json.loads(fixture("tools.json")))
    [choice] = completion.choices
    assert choice.finish_reason == "tool_calls"
    assert plain["choices"][0]["message"]["tool_calls"] == [
        {
            "id": "toolu_01A",
            "type": "function",
            "function": {"name": "get_weather", "arguments": '{"city": "Troms\\u00f8", "days": 2}'},
        },
        {
            "id": "toolu_01B",
            "type": "function",
            "function": {"name": "get_time", "arguments": "{}"},
        },
    ]
    assert plain["choices"][0]["message"]["reasoning_content"] == "Two cities."
    assert usage == Usage(prompt=300, completion=80, reasoning=21)
    assert "prompt_tokens_details" not in plain["usage"]


def test_thoughts_can_be_sent_back():
    _, plain, _ = answered(json.loads(fixture("tools.json")))
    message = plain["choices"][0]["message"]
    replayed = loose(messages=[USER, message])["messages"][1]["content"]
    sent = json.loads(fixture("tools.json"))["content"]
    assert replayed[:2] == sent[:2]
    assert [block["type"] for block in replayed[2:]] == ["text", "tool_use", "tool_use"]
    assert replayed[3]["input"] == {"city": "Tromsø", "days": 2}


def test_unsigned_reasoning_is_not_sent_back():
    thought = {"type": "thinking", "thinking": "hm"}
    message: Any = {"role": "assistant", "content": "yes", "reasoning_content": "hm"}
    message["thinking_blocks"] = [thought]
    assert turns(USER, message)[1]["content"] == [{"type": "text", "text": "yes"}]


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("pause_turn", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("something_new", "stop"),
        (None, "stop"),
    ],
)
def test_stop_reasons(reason: str | None, finish: str):
    body = {"content": [], "stop_reason": reason}
    completion, plain, usage = answered(body)
    assert completion.choices[0].finish_reason == finish
    assert completion.choices[0].message.content == ""
    assert usage is None
    assert "usage" not in plain


def test_refusal_says_why():
    body = {
        "content": [],
        "stop_reason": "refusal",
        "stop_details": {"type": "refusal", "explanation": "No."},
    }
    assert answered(body)[0].choices[0].message.refusal == "No."


def test_call_alone_has_no_content():
    block = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
    assert answered({"content": [block]})[0].choices[0].message.content is None
    assert answered({"content": [block]})[0].choices[0].finish_reason == "tool_calls"


def test_half_reported_usage_is_not_completed():
    _, plain, usage = answered({"content": [], "usage": {"output_tokens": 3}})
    assert usage == Usage(completion=3)
    assert "usage" not in plain


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"{}", b'{"content": 7}', b'{"content": [7]}', b"\xff", b"[" * 9000],
)
def test_unreadable_answers_are_broken(body: bytes):
    with pytest.raises(Failure) as raised:
        ADAPTER.answer(body, chat(), provider="one")
    assert raised.value.kind is FailureKind.BROKEN
    assert raised.value.lost


def test_error_in_an_answer_keeps_its_kind():
    body = json.dumps(
        {"type": "error", "error": {"type": "rate_limit_error", "message": "slow"}}
    ).encode()
    with pytest.raises(Failure) as raised:
        ADAPTER.answer(body, chat(), provider="one")
    assert (raised.value.kind, raised.value.status) == (FailureKind.LIMITED, 429)


# Streams


def test_stream_of_text():
    reader, given = read(fixture("text.sse"))
    assert (reader.begun, reader.finished, reader.failure) == (True, True, None)
    first, *_, last = chunks_of(given)
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    assert last.choices[0].finish_reason == "stop"
    assert given.count(b"[DONE]") == 1
    final = joined(given)
    assert final["choices"][0]["message"]["content"] == "Hello, Tromsø!"
    assert (final["id"], final["created"]) == ("msg_01Q", 1_700_000_000)
    assert "usage" not in final
    assert reader.usage == Usage(prompt=25, completion=15, cached=0, cache_written=0)


def test_usage_comes_last_and_once():
    reader, given = read(fixture("tools.sse"), wants_usage=True)
    *others, last = chunks_of(given)
    assert all(chunk.choices and chunk.usage is None for chunk in others)
    assert last.choices == []
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (536, 89)
    assert reader.usage == Usage(prompt=536, completion=89, cached=64, cache_written=0)


def test_calls_are_counted_by_themselves():
    _, given = read(fixture("tools.sse"))
    deltas = [
        call for chunk in chunks_of(given) for call in chunk.choices[0].delta.tool_calls or []
    ]
    assert [call.index for call in deltas] == [0, 0, 0, 0, 1, 1]
    assert [(call.id, call.type) for call in deltas if call.id] == [
        ("toolu_01T", "function"),
        ("toolu_02T", "function"),
    ]
    final = joined(given)["choices"][0]
    assert final["finish_reason"] == "tool_calls"
    assert final["message"]["content"] == "Okay, let's see"
    assert [call["function"] for call in final["message"]["tool_calls"]] == [
        {"name": "get_weather", "arguments": '{"city": "Tromsø", "days": 2}'},
        {"name": "get_time", "arguments": "{}"},
    ]


def test_whole_input_at_the_start_is_kept():
    block = {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}
    start = {"type": "content_block_start", "index": 0, "content_block": block}
    _, given = read(event(start) + event({"type": "message_stop"}))
    message = joined(given)["choices"][0]["message"]
    assert message["tool_calls"][0]["function"]["arguments"] == '{"a": 1}'


def test_streamed_thoughts_can_be_sent_back():
    _, given = read(fixture("thinking.sse"))
    message = joined(given)["choices"][0]["message"]
    assert message["reasoning_content"] == "First the tide."
    assert message["content"] == "It turns at noon."
    replayed = loose(messages=[USER, message])["messages"][1]["content"]
    assert replayed == [
        {
            "type": "thinking",
            "thinking": "First the tide.",
            "signature": "EqQBCgIYAhIM1gbcDa9GJwZA2b3h",
        },
        {"type": "redacted_thinking", "data": "EmwKAhgBEgy3"},
        {"type": "text", "text": "It turns at noon."},
    ]


def test_refusal_ends_a_stream_as_filtered():
    _, given = read(fixture("refusal.sse"))
    *_, reason, last = chunks_of(given)
    assert reason.choices[0].delta.refusal == "This was stopped by a policy."
    assert last.choices[0].finish_reason == "content_filter"


def test_error_first_begins_nothing():
    reader, given = read(fixture("overloaded_first.sse"))
    assert given == b""
    assert not reader.begun
    assert reader.failure is not None
    assert (reader.failure.kind, reader.failure.status) == (FailureKind.OVERLOADED, 529)
    assert not reader.failure.lost


@pytest.mark.parametrize(
    ("kind", "status"),
    [("rate_limit_error", 429), ("invalid_request_error", 400), ("timeout_error", 504), ("x", 500)],
)
def test_errors_in_streams_have_a_status(kind: str, status: int):
    start = event({"type": "message_start", "message": {"id": "m"}})
    error = event({"type": "error", "error": {"type": kind, "message": "no"}})
    reader, given = read(start + error)
    assert given == b""
    assert reader.failure is not None
    assert reader.failure.status == status


@pytest.mark.parametrize(
    ("kind", "told"), [("x", "while it answered"), ("api_error", "with status 500")]
)
def test_error_of_an_unknown_kind_is_told_without_a_status(kind: str, told: str):
    error = event({"type": "error", "error": {"type": kind, "message": "no"}})
    reader, _ = read(event({"type": "message_start", "message": {"id": "m"}}) + error)
    assert reader.failure is not None
    assert reader.failure.error.message == f"Provider one failed {told}."


def test_error_after_words_is_lost():
    reader, given = read(fixture("error_later.sse"))
    assert b"Half a" in given
    assert DONE not in given
    assert reader.begun
    assert not reader.finished
    assert reader.failure is not None
    assert (reader.failure.status, reader.failure.lost) == (500, True)


def test_nothing_begins_before_the_first_word():
    events = fixture("text.sse").split(b"\n\n")
    reader = ADAPTER.reader(chat(stream=True), ENDPOINT, provider="one")
    for item in events[:3]:
        assert reader.feed(item + b"\n\n") == b""
    assert not reader.begun
    assert reader.usage is not None
    assert reader.feed(events[3] + b"\n\n") != b""
    assert reader.begun


def test_stream_cut_short_is_a_failure():
    data = fixture("text.sse")
    reader, given = read(data[: data.index(b"event: message_delta")])
    assert DONE not in given
    assert reader.failure is not None
    assert (reader.failure.kind, reader.failure.lost) == (FailureKind.BROKEN, True)


@pytest.mark.parametrize("mark", [b"event: message_stop", b'"message_stop"', b"\n\n"])
def test_stop_reason_is_end_enough(mark: bytes):
    data = fixture("text.sse")
    reader, given = read(data[: data.rindex(mark)])
    assert reader.failure is None
    assert reader.finished
    assert joined(given)["choices"][0]["finish_reason"] == "stop"


def test_empty_answer_is_a_finished_one():
    reader, given = read(event({"type": "message_stop"}))
    assert reader.finished
    assert joined(given)["choices"][0]["message"]["content"] == ""


def test_what_follows_the_end_is_ignored():
    reader, given = read([fixture("text.sse"), b"data: [DONE]\n\n", fixture("error_later.sse")])
    assert reader.failure is None
    assert given.count(b"[DONE]") == 1
    assert reader.end() == b""


@pytest.mark.parametrize("name", ["text", "tools", "thinking", "refusal", "error_later"])
@given(data=st.data())
def test_any_split_gives_the_same(name: str, data: st.DataObject):
    whole = fixture(f"{name}.sse")
    if data.draw(st.booleans()):
        whole = whole.replace(b"\n", b"\r\n")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=30)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    expected, given_at_once = read(fixture(f"{name}.sse"))
    reader, given = read(pieces)
    assert given == given_at_once
    assert (reader.usage, reader.begun, reader.finished) == (
        expected.usage,
        expected.begun,
        expected.finished,
    )


def test_single_bytes_give_the_same():
    whole = fixture("tools.sse")
    assert read([bytes([byte]) for byte in whole])[1] == read(whole)[1]


@given(st.binary(max_size=200), st.integers(0, 400))
def test_garbage_fails_without_raising(garbage: bytes, at: int):
    whole = fixture("tools.sse")
    reader, _ = read([whole[:at] + garbage])
    assert reader.failure is not None or reader.finished


@pytest.mark.parametrize(
    "payload",
    [
        b"{oops",
        b"7",
        b"[" * 9000,
        b'{"type":"message_start","message":7}',
        b'{"type":"content_block_start","index":0,"content_block":{"type":"text","text":7}}',
        b'{"type":"content_block_start","index":0}',
        b'{"type":"content_block_delta","index":"x"}',
        b'{"type":"error","error":{}}',
        b'{"error":"gone"}',
    ],
)
def test_unreadable_events_fail(payload: bytes):
    reader, _ = read(b"data: " + payload + b"\n\n")
    assert reader.failure is not None


def test_open_blocks_are_bounded():
    def starts(count: int) -> bytes:
        block = {"type": "text", "text": ""}
        return b"".join(
            event({"type": "content_block_start", "index": index, "content_block": block})
            for index in range(count)
        )

    stop = event({"type": "message_stop"})
    assert read(starts(MAX_OPEN_BLOCKS) + stop)[0].failure is None
    assert read(starts(MAX_OPEN_BLOCKS + 1) + stop)[0].failure is not None


def test_kept_thoughts_are_bounded():
    block = {"type": "thinking", "thinking": ""}
    start = event({"type": "content_block_start", "index": 0, "content_block": block})
    delta = {"type": "thinking_delta", "thinking": "x" * (MAX_EVENT // 4)}
    piece = event({"type": "content_block_delta", "index": 0, "delta": delta})
    reader = ADAPTER.reader(chat(stream=True), ENDPOINT, provider="one")
    reader.feed(start)
    for _ in range(4):
        reader.feed(piece)
    assert reader.failure is None
    reader.feed(piece)
    assert reader.failure is not None
    assert reader.failure.lost


def test_fakes_stream_equals_its_answer():
    members: Any = {"tools": [WEATHER, CLOCK], "reasoning_effort": "high"}
    body = asked(**members)
    _, given = read(b"".join(frames(body)))
    _, plain, _ = answered(message_of(body))
    streamed, whole = joined(given)["choices"][0], plain["choices"][0]
    assert streamed["message"]["tool_calls"] == [
        {**call, "index": index} for index, call in enumerate(whole["message"]["tool_calls"])
    ]
    for name in ("content", "reasoning_content"):
        assert streamed["message"][name] == whole["message"][name]
    assert streamed["finish_reason"] == whole["finish_reason"]


# Errors and models


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("`temperature` is deprecated for this model.", "temperature"),
        ("temperature is deprecated for this model.", "temperature"),
        ("top_k: Extra inputs are not permitted", "top_k"),
        ("This model does not support the effort parameter.", "reasoning_effort"),
        ("adaptive thinking is not supported on this model", "reasoning_effort"),
        ('"thinking.type.enabled" is not supported for this model.', "reasoning_effort"),
        ("messages.0.content.0.text.foo: Extra inputs are not permitted", None),
        ("Thinking may not be enabled when tool_choice forces tool use.", None),
    ],
)
def test_errors_name_what_the_model_does_not_take(message: str, param: str | None):
    error = {"type": "invalid_request_error", "message": message}
    answer = ADAPTER.error(json.dumps({"type": "error", "error": error}).encode(), {})
    assert (answer.message, answer.param) == (message, param)
    assert answer.code == (None if param is None else "unsupported_parameter")
    assert answer.status is None


def test_errors_tell_when_to_come_back():
    error = {"type": "error", "error": {"type": "rate_limit_error", "message": "slow"}}
    answer = ADAPTER.error(json.dumps(error).encode(), {b"retry-after": b"7"})
    assert (answer.code, answer.message, answer.retry_after) == (None, "slow", 7)


def test_account_troubles_are_not_the_callers():
    credit = {"type": "invalid_request_error", "message": "Your credit balance is too low to go on"}
    held = {
        "type": "invalid_request_error",
        "message": "on hold",
        "details": {"error_code": "organization_on_hold"},
    }
    assert ADAPTER.error(json.dumps({"error": credit}).encode(), {}).status == 402
    assert ADAPTER.error(json.dumps({"error": held}).encode(), {}).status == 403


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("prompt is too long: 9 tokens > 8 maximum", "context_length_exceeded"),
        ("model: claude-missing", "model_not_found"),
    ],
)
def test_errors_have_the_codes_that_callers_know(message: str, code: str):
    error = {"type": "invalid_request_error", "message": message}
    assert ADAPTER.error(json.dumps({"error": error}).encode(), {}).code == code


@given(
    st.binary(max_size=100) | st.sampled_from([b"[" * 9000, b'{"error": "gone"}', b'{"error":7}'])
)
def test_odd_error_bodies_have_no_words(body: bytes):
    answer = ADAPTER.error(body, {})
    assert answer.message in ("", "gone")


def test_models_are_read_from_one_page():
    assert ADAPTER.listing() == "/models?limit=1000"
    listing = {"data": [{"id": "claude-opus-5", "type": "model"}], "has_more": False}
    assert ADAPTER.models(json.dumps(listing).encode()) == ["claude-opus-5"]

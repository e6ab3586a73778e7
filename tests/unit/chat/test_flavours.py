"""What each kind of OpenAI-compatible upstream is sent, and how its answers are read."""

import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiserver.chat.error_answers import LONGEST_WAIT, error_answer, retry_after
from aiserver.chat.flavours import PLAIN, adjusted, flavour_of, short_id
from aiserver.chat.replies import FAILED, GaveUp, finish, normal_message, normal_payload
from aiserver.chat.usage import MOST_TOKENS, usage_of
from aiserver.contract.errors import InvalidRequest
from aiserver.contract.trace import Usage
from aiserver.providers.catalogue import TYPES

MISTRAL = flavour_of("Mistral AI")
GROQ = flavour_of("GroqCloud")
LOCAL = flavour_of("Local")
STREAMS = Path(__file__).parents[2] / "fixtures" / "compatible"
QUESTION: list[Any] = [{"role": "user", "content": "hello"}]
CALL = {"type": "function", "function": {"name": "get_time", "arguments": "{}"}}


def asking(**more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": QUESTION, **more}


def with_part(part: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "?"}, part]}]}


def test_rows_are_of_known_kinds() -> None:
    known = {row.wire.id for row in TYPES if row.dialect == "openai"}
    assert {id for id in known if flavour_of(id) is not PLAIN} == {
        "Mistral AI",
        "GroqCloud",
        "Local",
    }
    assert flavour_of("Anthropic") is PLAIN


@pytest.mark.parametrize("kind", ["Open AI", "OpenRouter", "Custom"])
def test_compatible_upstreams_get_the_same_dict(kind: str) -> None:
    members = asking(seed=1, max_completion_tokens=None, n=3, future={"a": [1]})
    assert adjusted(members, flavour_of(kind)) is members


@pytest.mark.parametrize("flavour", [MISTRAL, GROQ, LOCAL])
def test_fitting_request_stays_the_same_dict(flavour: Any) -> None:
    members = asking(temperature=0.5, max_tokens=5, stream=True)
    assert adjusted(members, flavour) is members


def test_plain_upstreams_cost_next_to_nothing() -> None:
    members = asking(temperature=0.5)
    took = min(_timed(members) for _ in range(5))
    assert took < 2e-6


def _timed(members: dict[str, Any]) -> float:
    began = time.perf_counter()
    for _ in range(1000):
        adjusted(members, PLAIN)
    return (time.perf_counter() - began) / 1000


def test_mistral_gets_its_own_names() -> None:
    sent = adjusted(asking(seed=7, max_completion_tokens=9, tool_choice="required"), MISTRAL)
    assert sent == asking(random_seed=7, max_tokens=9, tool_choice="any")


def test_name_that_the_upstream_knows_wins() -> None:
    both = asking(max_completion_tokens=9, max_tokens=5)
    assert adjusted(both, MISTRAL) == asking(max_tokens=5)
    assert adjusted(asking(max_completion_tokens=9, max_tokens=None), MISTRAL) == asking(
        max_tokens=9
    )


def test_mistral_gets_no_member_that_it_would_refuse() -> None:
    extra = {"user": "u", "logit_bias": {"1": 2}, "store": False, "stream_options": {"a": 1}}
    nulls = {"parallel_tool_calls": None, "functions": None}
    assert adjusted(asking(**extra, **nulls, top_p=1), MISTRAL) == asking(top_p=1)


def test_mistral_takes_a_named_tool_as_it_is() -> None:
    choice = {"type": "function", "function": {"name": "get_time"}}
    members = asking(tool_choice=choice)
    assert adjusted(members, MISTRAL) is members


def test_echoed_messages_lose_what_is_not_accepted() -> None:
    echoed = {
        "role": "assistant",
        "content": "hi",
        "refusal": None,
        "annotations": [],
        "reasoning_content": "so",
    }
    members = {"messages": [{"role": "developer", "content": "x", "name": "d"}, echoed]}
    before = msgspec.json.encode(members)
    assert adjusted(members, MISTRAL)["messages"] == [
        {"role": "system", "content": "x"},
        {"role": "assistant", "content": "hi"},
    ]
    assert adjusted(members, GROQ)["messages"] == [
        members["messages"][0],
        {"role": "assistant", "content": "hi", "reasoning": "so"},
    ]
    assert msgspec.json.encode(members) == before


def test_foreign_tool_ids_stay_pairs() -> None:
    messages: list[Any] = [
        {"role": "assistant", "content": None, "tool_calls": [{"id": "call_1", **CALL}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "12:00"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "abcDEF123", **CALL}]},
        {"role": "tool", "tool_call_id": "abcDEF123", "content": "12:01"},
    ]
    first, answer, second, other = adjusted({"messages": messages}, MISTRAL)["messages"]
    assert first["tool_calls"][0]["id"] == answer["tool_call_id"] == short_id("call_1")
    assert second is messages[2]
    assert other is messages[3]
    assert messages[1]["tool_call_id"] == "call_1"


@given(st.text(min_size=1), st.text(min_size=1))
def test_short_ids_are_nine_letters_and_digits(one: str, other: str) -> None:
    short = short_id(one)
    assert len(short) == 9
    assert short.isascii()
    assert short.isalnum()
    assert short_id(short) == short
    assert (short == short_id(other)) == (one == other or short_id(other) == one or short == other)


@pytest.mark.parametrize(
    ("flavour", "more", "param"),
    [
        (GROQ, {"n": 2}, "n"),
        (GROQ, {"modalities": ["text", "audio"]}, "modalities"),
        (MISTRAL, {"functions": [{"name": "f"}]}, "functions"),
        (MISTRAL, {"messages": [{"role": "user", "content": "?", "images": ["x"]}]}, "messages"),
    ],
)
def test_what_cannot_be_carried_is_refused(flavour: Any, more: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        adjusted(asking() | more, flavour)
    assert raised.value.param == param
    assert "cannot carry" in raised.value.message


def test_one_choice_is_no_reason_to_refuse() -> None:
    members = asking(n=1)
    assert adjusted(members, GROQ) is members
    assert adjusted(asking(n=None), GROQ) == asking()


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://192.0.2.1/secret"}},
        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
        {"type": "image_url", "image_url": {"url": " FILE:///etc/passwd"}},
        {"type": "image_url", "image_url": {"url": "/etc/passwd"}},
        {"type": "image_url", "image_url": "https://192.0.2.1/"},
        {"type": "input_audio", "input_audio": {"data": "file:///etc/passwd"}},
        {"type": "input_video", "input_video": [{"url": "http://192.0.2.1/"}]},
    ],
)
def test_local_models_fetch_nothing_for_a_caller(part: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="data: URLs"):
        adjusted(with_part(part), LOCAL)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
        {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
        {"type": "text", "text": "see https://example.com/ and file:///etc"},
    ],
)
def test_local_models_take_what_came_along(part: dict[str, Any]) -> None:
    members = with_part(part)
    assert adjusted(members, LOCAL) is members


@pytest.mark.parametrize(
    ("reason", "normal"),
    [
        ("stop", "stop"),
        ("tool_calls", "tool_calls"),
        ("model_length", "length"),
        ("error", FAILED),
        ("something_new", "stop"),
    ],
)
def test_finish_reasons_become_openais(reason: str, normal: str) -> None:
    assert finish(reason) == normal


def test_thoughts_are_told_from_the_text() -> None:
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "hm, "}]}
    content: list[Any] = [thinking, thinking, {"type": "text", "text": "hello"}, {"type": "x"}]
    assert normal_message({"role": "assistant", "content": content}) == {
        "role": "assistant",
        "content": "hello",
        "reasoning_content": "hm, hm, ",
    }


def test_tool_calls_get_type_and_text() -> None:
    function = {"name": "f", "arguments": {"a": 1}}
    called = normal_message({"tool_calls": [{"id": "abc", "index": 0, "function": function}]})
    assert called["tool_calls"] == [
        {
            "id": "abc",
            "index": 0,
            "function": {"name": "f", "arguments": '{"a":1}'},
            "type": "function",
        }
    ]
    assert function["arguments"] == {"a": 1}


def test_normal_messages_stay_the_same_dict() -> None:
    for message in ({"content": "x"}, {"content": None, "tool_calls": [{"id": "a", **CALL}]}):
        assert normal_message(message) is message


ORDINARY: list[dict[str, Any]] = [
    {"choices": [{"index": 0, "message": {"content": "x"}, "finish_reason": "stop"}], "n": 1e-7},
    {"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}}]},
    {"choices": [{"delta": {"tool_calls": [{"index": 0, "id": "a", **CALL}]}}]},
    {"choices": []},
    {"error": {"message": "no"}},
]


@pytest.mark.parametrize("payload", [*map(msgspec.json.encode, ORDINARY), b"[DONE]", b"[1]", b""])
def test_ordinary_replies_stay_the_same_bytes(payload: bytes) -> None:
    assert normal_payload(payload) is payload


def test_replies_become_openais() -> None:
    chunk = b"""{"id":"x","cost":1.10,"choices":[{"index":0,"delta":{"content":[
        {"type":"thinking","thinking":[{"type":"text","text":"hm"}]}]},
        "finish_reason":"model_length"}]}"""
    assert normal_payload(chunk) == (
        b'{"id":"x","cost":1.10,"choices":[{"index":0,"delta":{"content":"",'
        b'"reasoning_content":"hm"},"finish_reason":"length"}]}'
    )


def chunks_of(name: str) -> list[bytes]:
    lines = (STREAMS / f"{name}.sse").read_bytes().split(b"\n")
    return [line[6:] for line in lines if line.startswith(b"data: {")]


def test_thinking_stream_becomes_text_and_thoughts() -> None:
    chunks = chunks_of("mistral_thinking")
    deltas = [msgspec.json.decode(normal_payload(each))["choices"][0]["delta"] for each in chunks]
    assert "".join(delta["content"] for delta in deltas) == "echo: hello"
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Let me think."
    assert [usage_of(each) for each in chunks if usage_of(each)] == [Usage(prompt=1, completion=5)]


def test_streamed_calls_get_their_type() -> None:
    last = msgspec.json.decode(normal_payload(chunks_of("mistral_tool_calls")[-1]))
    calls = last["choices"][0]["delta"]["tool_calls"]
    assert [(call["index"], call["type"]) for call in calls] == [(0, "function"), (1, "function")]
    assert all(msgspec.json.decode(call["function"]["arguments"]) for call in calls)


def test_cost_beside_a_silent_choice_is_found() -> None:
    *before, last = chunks_of("openrouter_cost")
    assert all(normal_payload(each) is each and usage_of(each) is None for each in before)
    usage = usage_of(last)
    assert usage is not None
    assert usage.cost == Decimal("0.00012345678901234567891")
    assert (usage.cached, usage.cache_written, usage.reasoning) == (3, 0, 0)


def test_error_after_tokens_is_read() -> None:
    last = chunks_of("openrouter_error")[-1]
    answer = error_answer(last, {})
    assert (answer.message, answer.code, answer.status) == (
        "Provider disconnected",
        "provider_unavailable",
        502,
    )
    with pytest.raises(GaveUp):
        normal_payload(last)


def test_answer_that_was_given_up_is_no_answer() -> None:
    with pytest.raises(GaveUp):
        normal_payload(b'{"choices":[{"message":{"content":"ha"},"finish_reason":"error"}]}')


def used(text: str) -> Usage | None:
    return usage_of(text.encode())


@pytest.mark.parametrize(
    ("payload", "usage"),
    [
        (
            '{"usage":{"prompt_tokens":9,"completion_tokens":5,"total_tokens":14,'
            '"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},'
            '"completion_tokens_details":{"reasoning_tokens":3}}}',
            Usage(prompt=9, completion=5, cached=0, reasoning=3),
        ),
        (
            '{"usage":{"prompt_tokens":9,"completion_tokens":0,"cost":0.00014,'
            '"prompt_tokens_details":{"cached_tokens":2,"cache_write_tokens":4}}}',
            Usage(prompt=9, completion=0, cached=2, cache_written=4, cost=Decimal("0.00014")),
        ),
        (
            '{"choices":[],"x_groq":{"id":"r","usage":{"prompt_tokens":3,"completion_tokens":4,'
            '"queue_time":0.1}}}',
            Usage(prompt=3, completion=4),
        ),
        (
            '{"usage":{"prompt_tokens":8,"completion_tokens":1,"prompt_cache_hit_tokens":6,'
            '"prompt_cache_miss_tokens":2}}',
            Usage(prompt=8, completion=1, cached=6),
        ),
        (
            '{"choices":[{"index":0,"usage":{"prompt_tokens":8,"completion_tokens":1,'
            '"cached_tokens":0}}]}',
            Usage(prompt=8, completion=1, cached=0),
        ),
        (
            '{"timings":{"cache_n":5,"prompt_n":2,"predicted_n":7,"prompt_ms":1.5}}',
            Usage(prompt=7, completion=7, cached=5),
        ),
        (
            '{"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":17,'
            '"completion_tokens_details":{"reasoning_tokens":10}}}',
            Usage(prompt=5, completion=12, reasoning=10),
        ),
        ('{"usage":{"prompt_tokens":5,"completion_tokens":"?"}}', Usage(prompt=5)),
        (
            '{"usage":{"prompt_tokens":5,"prompt_tokens_details":{"cached_tokens":"x"},"cost":1}}',
            Usage(prompt=5, cost=Decimal(1)),
        ),
    ],
)
def test_usage_is_found_wherever_it_is(payload: str, usage: Usage) -> None:
    assert used(payload) == usage


@pytest.mark.parametrize(
    "payload",
    [
        "",
        "[]",
        "null",
        "{",
        "{}",
        '{"usage":null}',
        '{"usage":{}}',
        '{"usage":[1]}',
        '{"usage":{"prompt_tokens":-1}}',
        '{"usage":{"total_tokens":7}}',
        '{"usage":{"cost":"NaN"}}',
        '{"usage":{"cost":1e-99999}}',
        '{"x_groq":7,"choices":{},"timings":{}}',
        '{"usage":' + "[" * 5000,
    ],
)
def test_missing_usage_is_not_zero(payload: str) -> None:
    assert used(payload) is None


def test_absurd_counts_are_missing() -> None:
    assert used(f'{{"usage":{{"prompt_tokens":{MOST_TOKENS},"completion_tokens":1}}}}') == Usage(
        prompt=MOST_TOKENS, completion=1
    )
    assert used(
        f'{{"usage":{{"prompt_tokens":{MOST_TOKENS + 1},"completion_tokens":1}}}}'
    ) == Usage(completion=1)


@given(st.decimals(min_value=0, max_value=1000, places=15))
def test_cost_is_exactly_what_was_written(cost: Decimal) -> None:
    usage = used(f'{{"usage":{{"prompt_tokens":1,"cost":{cost:f}}}}}')
    assert usage is not None
    assert usage.cost == cost


@given(st.binary())
def test_no_bytes_break_the_readers(body: bytes) -> None:
    usage_of(body)
    normal_payload(body)
    error_answer(body, {b"retry-after": body, b"date": body})


EXTRA = {"loc": ["body", "store"], "msg": "Extra inputs are not permitted", "type": "extra"}
NESTED = {**EXTRA, "loc": ["body", "messages", 0, "user", "name"]}
ERRORS: dict[str, tuple[Any, str, str | None, str | None, int | None]] = {
    "openai": (
        {"error": {"message": "no", "type": "t", "param": "top_k", "code": "unknown_parameter"}},
        "no",
        "unknown_parameter",
        "top_k",
        None,
    ),
    "openai without code": (
        {
            "error": {
                "message": "no",
                "type": "invalid_request_error",
                "param": None,
                "code": None,
            }
        },
        "no",
        None,
        None,
        None,
    ),
    "mistral": (
        {
            "object": "error",
            "message": "Rate limit",
            "type": "rate_limited",
            "param": None,
            "code": "1300",
        },
        "Rate limit",
        "rate_limited",
        None,
        None,
    ),
    "mistral 422": (
        {"detail": [EXTRA, NESTED]},
        "store: Extra inputs are not permitted; "
        "messages.0.user.name: Extra inputs are not permitted",
        None,
        "store",
        None,
    ),
    "mistral 422 in message": (
        {"object": "error", "message": {"detail": [EXTRA]}, "type": "invalid_request_error"},
        "store: Extra inputs are not permitted",
        None,
        "store",
        None,
    ),
    "mistral 401": ({"detail": "Unauthorized"}, "Unauthorized", None, None, None),
    "groq": (
        {
            "error": {
                "message": "Failed.",
                "type": "invalid_request_error",
                "code": "tool_use_failed",
                "failed_generation": "<f",
            }
        },
        "Failed. <f",
        "tool_use_failed",
        None,
        None,
    ),
    "openrouter": (
        {"error": {"code": 402, "message": "Insufficient credits"}, "user_id": "u"},
        "Insufficient credits",
        None,
        None,
        402,
    ),
    "openrouter raw": (
        {
            "error": {
                "code": 429,
                "message": "Provider returned error",
                "metadata": {
                    "provider_name": "Acme",
                    "raw": '{"error":{"message":"too fast","code":"rate_limited"}}',
                },
            }
        },
        "Acme: too fast",
        "rate_limited",
        None,
        429,
    ),
    "openrouter in a stream": (
        {
            "id": "gen-1",
            "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}],
            "error": {
                "code": 502,
                "message": "gone",
                "metadata": {"error_type": "provider_unavailable"},
            },
        },
        "gone",
        "provider_unavailable",
        None,
        502,
    ),
    "llama.cpp": (
        {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}},
        "Loading model",
        "unavailable_error",
        None,
        503,
    ),
    "vllm": (
        {
            "object": "error",
            "message": "too long",
            "type": "BadRequestError",
            "param": None,
            "code": 400,
        },
        "too long",
        None,
        None,
        400,
    ),
    "ollama": ({"error": "model 'm' not found"}, "model 'm' not found", None, None, None),
    "text": ("busy", "busy", None, None, None),
    "list": ([1], "", None, None, None),
    "odd": ({"error": {"message": {"a": 1}, "code": True}}, '{"a":1}', None, None, None),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_read_in_every_shape(name: str) -> None:
    body, message, code, param, status = ERRORS[name]
    answer = error_answer(msgspec.json.encode(body), {})
    assert (answer.message, answer.code, answer.param, answer.status) == (
        message,
        code,
        param,
        status,
    )


@pytest.mark.parametrize("body", [b"", b"<html>502</html>", b"busy", b"[" * 5000, b'"\xff"'])
def test_pages_have_no_words(body: bytes) -> None:
    assert error_answer(body, {}).message == ""


DATE = b"Wed, 21 Oct 2026 07:28:00 GMT"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({b"retry-after": b"7"}, 7.0),
        ({b"retry-after": b"7", b"retry-after-ms": b"250"}, 0.25),
        ({b"retry-after": b"-1"}, 0.0),
        ({b"retry-after": b"soon"}, None),
        ({b"retry-after": b"nan"}, None),
        ({b"retry-after": b"inf"}, LONGEST_WAIT),
        ({b"retry-after": b"999999"}, LONGEST_WAIT),
        ({b"retry-after": DATE, b"date": b"Wed, 21 Oct 2026 07:27:30 GMT"}, 30.0),
        ({b"retry-after": DATE, b"date": DATE}, 0.0),
        ({b"retry-after": b"Wed, 21 Oct 1998 07:28:00 GMT"}, 0.0),
    ],
)
def test_wait_is_read_and_bounded(headers: dict[bytes, bytes], seconds: float | None) -> None:
    assert retry_after(headers) == seconds
    assert error_answer(b"", headers).retry_after == seconds

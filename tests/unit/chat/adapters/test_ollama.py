"""Ollama's dialect: requests out of the normal form, answers and streams into it."""

import json
from typing import Any

import msgspec
import pytest

from aiserver.chat.adapters.adapter import Chat, StreamReader
from aiserver.chat.adapters.ollama import NativeAnswer, NativeChat, OllamaAdapter, loaded
from aiserver.chat.adapters.ollama_stream import MAX_LINE, LineSplitter
from aiserver.chat.failures import Failure
from aiserver.contract.errors import InvalidRequest
from aiserver.contract.trace import Usage
from aiserver.providers.catalogue import BY_ID
from aiserver.providers.endpoints import Endpoint
from aiserver.providers.health import FailureKind
from fakes.ollama import BUSY, LISTED, MODEL, THOUGHT, lines_of

ENDPOINT = Endpoint("http://127.0.0.1:11434/api", (), BY_ID["Ollama"])
ASKING: list[dict[str, Any]] = [{"role": "user", "content": "how are you today"}]
WEATHER: dict[str, Any] = {"type": "function", "function": {"name": "get_weather"}}
TIME: dict[str, Any] = {"type": "function", "function": {"name": "get_time"}}
PNG = "iVBORw0KGgo="

adapter = OllamaAdapter()


def chat_of(*, stream: bool = False, usage: bool = False, **members: Any) -> Chat:
    return Chat(
        members={"messages": ASKING, **members},
        model="asked-for",
        stream=stream,
        wants_usage=usage,
        request_id="r-1",
        created=1_700_000_000,
    )


def generation_of(*, stream: bool = False, **native: Any) -> NativeChat:
    return NativeChat(
        members={"messages": ASKING},
        native={"prompt": "hello there", **native},
        model="asked-for",
        stream=stream,
        wants_usage=False,
        request_id="r-1",
        created=1_700_000_000,
    )


def sent(chat: Chat) -> dict[str, Any]:
    outgoing = adapter.request(chat, ENDPOINT, model="theirs", provider="box")
    assert outgoing.path == "/chat"
    return json.loads(outgoing.body)


def refused(**members: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as raised:
        sent(chat_of(**members))
    return raised.value


def answered(lines: dict[str, Any], chat: Chat | None = None) -> tuple[dict[str, Any], Any]:
    given = adapter.answer(msgspec.json.encode(lines), chat or chat_of(), provider="box")
    return json.loads(given.body), given.usage


def failure_of(body: bytes, chat: Chat | None = None) -> Failure:
    with pytest.raises(Failure) as raised:
        adapter.answer(body, chat or chat_of(), provider="box")
    return raised.value


def whole(**members: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": "hello"}
    return {"model": MODEL, "message": message, "done": True, "done_reason": "stop", **members}


def stream_of(*lines: dict[str, Any]) -> bytes:
    return b"".join(msgspec.json.encode(line) + b"\n" for line in lines)


def reader_of(chat: Chat | None = None) -> StreamReader:
    return adapter.reader(chat or chat_of(stream=True, usage=True), ENDPOINT, provider="box")


def events_of(given: bytes) -> list[Any]:
    data = [event.removeprefix("data: ") for event in given.decode().split("\n\n") if event]
    return [text if text == "[DONE]" else json.loads(text) for text in data]


def deltas_of(given: bytes) -> list[dict[str, Any]]:
    chunks = [event for event in events_of(given) if event != "[DONE]"]
    return [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]


def test_plain_chat_goes_out_whole():
    assert sent(chat_of()) == {
        "model": "theirs",
        "messages": [{"role": "user", "content": "how are you today"}],
        "stream": False,
        "truncate": False,
    }


def test_stream_is_always_said():
    assert sent(chat_of(stream=True))["stream"] is True
    assert sent(chat_of())["stream"] is False


def test_too_long_prompt_is_cut_only_when_asked():
    assert sent(chat_of(truncate=True))["truncate"] is True


@pytest.mark.parametrize(
    ("members", "options"),
    [
        ({"max_tokens": 5}, {"num_predict": 5}),
        ({"max_tokens": 5, "max_completion_tokens": 7}, {"num_predict": 7}),
        ({"temperature": 0, "top_p": 0.5, "seed": 3}, {"temperature": 0, "top_p": 0.5, "seed": 3}),
        ({"stop": "END"}, {"stop": ["END"]}),
        ({"stop": ["a", "b"]}, {"stop": ["a", "b"]}),
        ({"stop": None, "temperature": None, "max_tokens": None}, None),
        (
            {"presence_penalty": 0.1, "frequency_penalty": 0.2},
            {"presence_penalty": 0.1, "frequency_penalty": 0.2},
        ),
        ({"top_k": 40, "min_p": 0.05}, {"top_k": 40, "min_p": 0.05}),
        ({"options": {"num_ctx": 8192}, "seed": 1}, {"num_ctx": 8192, "seed": 1}),
        ({"options": {"temperature": 0.1}, "temperature": 0.9}, {"temperature": 0.1}),
    ],
)
def test_sampling_becomes_options(members: dict[str, Any], options: dict[str, Any] | None):
    assert sent(chat_of(**members)).get("options") == options


def test_members_of_ollama_go_along():
    extras: dict[str, Any] = {"keep_alive": "10m", "think": True, "format": "json", "shift": False}
    assert sent(chat_of(**extras)).items() >= extras.items()


def test_members_without_meaning_stay_behind():
    body = sent(chat_of(user="me", metadata={"a": "b"}, store=False, stream_options={}, n=1))
    assert set(body) == {"model", "messages", "stream", "truncate"}


@pytest.mark.parametrize(
    ("effort", "think"),
    [("none", False), ("minimal", "low"), ("low", "low"), ("high", "high"), ("xhigh", "max")],
)
def test_effort_becomes_thinking(effort: str, think: Any):
    assert sent(chat_of(reasoning_effort=effort))["think"] == think


def test_unknown_effort_is_refused():
    assert refused(reasoning_effort="immense").param == "reasoning_effort"


@pytest.mark.parametrize(
    ("response_format", "form"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, "json"),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
         {"type": "object"}),
    ],
)  # fmt: skip
def test_response_format_becomes_format(response_format: dict[str, Any], form: Any):
    assert sent(chat_of(response_format=response_format)).get("format") == form


@pytest.mark.parametrize(
    "members",
    [
        {"n": 2},
        {"logit_bias": {"50256": -100}},
        {"functions": [{"name": "old"}]},
        {"tools": [WEATHER], "tool_choice": "required"},
        {"tools": [WEATHER],
         "tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
        {"response_format": {"type": "grammar", "grammar": "root ::= a"}},
    ],
)  # fmt: skip
def test_what_ollama_lacks_is_refused(members: dict[str, Any]):
    assert refused(**members).param in members


def test_tools_go_along_unless_forbidden():
    assert sent(chat_of(tools=[WEATHER], tool_choice="auto"))["tools"] == [WEATHER]
    assert "tools" not in sent(chat_of(tools=[WEATHER], tool_choice="none"))


def test_parts_become_text_and_raw_images():
    parts = [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
        {"type": "text", "text": "closely"},
    ]
    [message] = sent(chat_of(messages=[{"role": "user", "content": parts}]))["messages"]
    assert message == {"role": "user", "content": "look\nclosely", "images": [PNG]}


def test_images_of_typed_clients_are_joined():
    message = {"role": "user", "content": "look", "images": [f"data:image/png;base64,{PNG}", PNG]}
    assert sent(chat_of(messages=[message]))["messages"][0]["images"] == [PNG, PNG]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}},
        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
        {"type": "image_url", "image_url": "data:image/svg+xml,<svg/>"},
        {"type": "image_url", "image_url": {}},
        {"type": "file", "file": {"file_id": "f"}},
        "text",
    ],
)
def test_parts_that_would_be_fetched_or_lost_are_refused(part: Any):
    assert refused(messages=[{"role": "user", "content": [part]}]).param == "messages"


def test_developer_speaks_as_system():
    [message] = sent(chat_of(messages=[{"role": "developer", "content": "be brief"}]))["messages"]
    assert message == {"role": "system", "content": "be brief"}


def test_tool_turns_keep_arguments_names_and_ids():
    function = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    call = {"id": "c1", "type": "function", "function": function}
    turns = [
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    said, result = sent(chat_of(messages=turns))["messages"]
    assert said["tool_calls"] == [
        {"id": "c1", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}
    ]
    assert (said["content"], said["thinking"]) == ("", "hm")
    assert result == {
        "role": "tool",
        "content": "sunny",
        "tool_name": "get_weather",
        "tool_call_id": "c1",
    }


def test_empty_arguments_are_an_empty_object():
    for arguments in ("", None, "{}"):
        call = {"id": "c", "function": {"name": "f", "arguments": arguments}}
        turn = {"role": "assistant", "content": "", "tool_calls": [call]}
        [message] = sent(chat_of(messages=[turn]))["messages"]
        assert message["tool_calls"][0]["function"]["arguments"] == {}


@pytest.mark.parametrize("arguments", ["{", "[1]", '"text"', 5, "[" * 100_000])
def test_arguments_that_are_no_object_are_refused(arguments: Any):
    call = {"id": "c", "function": {"name": "f", "arguments": arguments}}
    error = refused(messages=[{"role": "assistant", "tool_calls": [call]}])
    assert "'f'" in error.message


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "tool_calls": ["call"]},
        {"role": "assistant", "tool_calls": "call"},
        {"role": "assistant", "tool_calls": [{"function": "f"}]},
        {"role": "user", "content": 5},
        {"role": "user", "content": "a", "images": [5]},
    ],
)
def test_misshapen_messages_are_refused(message: dict[str, Any]):
    assert refused(messages=[message]).param == "messages"


def test_generation_goes_out_as_it_came():
    chat = generation_of(images=[PNG], options={"num_ctx": 64}, stream=True)
    outgoing = adapter.request(chat, ENDPOINT, model="theirs", provider="box")
    assert outgoing.path == "/generate"
    assert json.loads(outgoing.body) == {
        "prompt": "hello there",
        "images": [PNG],
        "options": {"num_ctx": 64},
        "model": "theirs",
        "stream": True,
    }


def test_answer_becomes_one_choice():
    body, usage = answered(whole(prompt_eval_count=4, eval_count=5))
    [choice] = body["choices"]
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": "hello"},
        "finish_reason": "stop",
    }
    assert (body["object"], body["created"], body["model"]) == (
        "chat.completion",
        1_700_000_000,
        MODEL,
    )
    assert body["usage"] == {"prompt_tokens": 4, "completion_tokens": 5, "total_tokens": 9}
    assert usage == Usage(prompt=4, completion=5)


def test_missing_count_is_not_zero():
    body, usage = answered(whole(eval_count=5))
    assert usage == Usage(prompt=None, completion=5)
    assert "usage" not in body
    assert answered(whole())[1] is None
    assert answered(whole(prompt_eval_count=0, eval_count=0))[1] == Usage(prompt=0, completion=0)


@pytest.mark.parametrize("count", [-1, 1.5, "5", True, 10**12])
def test_impossible_count_is_missing(count: Any):
    assert answered(whole(prompt_eval_count=count, eval_count=5))[1] == Usage(completion=5)


def test_length_is_told():
    assert answered(whole(done_reason="length"))[0]["choices"][0]["finish_reason"] == "length"


def test_thoughts_are_reasoning():
    message = {"role": "assistant", "content": "hi", "thinking": "hm"}
    [choice] = answered(whole(message=message))[0]["choices"]
    assert choice["message"]["reasoning_content"] == "hm"


def test_tool_calls_get_ids_and_text_arguments():
    function = {"name": "f", "arguments": {"b": 1, "a": [None]}}
    calls = [{"id": "own", "function": function}, {"function": function}, {"function": function}]
    message = {"role": "assistant", "content": "", "tool_calls": calls}
    [choice] = answered(whole(message=message))[0]["choices"]
    given = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert given[0]["id"] == "own"
    assert len({call["id"] for call in given}) == 3
    assert [call["function"]["arguments"] for call in given] == ['{"b":1,"a":[null]}'] * 3


def test_log_probabilities_are_completed():
    [choice] = answered(whole(logprobs=[{"token": "a", "logprob": -0.5}]))[0]["choices"]
    assert choice["logprobs"] == {
        "content": [{"bytes": None, "top_logprobs": [], "token": "a", "logprob": -0.5}]
    }


@pytest.mark.parametrize(
    "body",
    [
        b"not json",
        b"[1]",
        b'{"model": "\xff"}',
        b"[" * 100_000,
        b'{"message": {"content": "half"}, "done": false}',
        b'{"done": true}',
    ],
)
def test_answer_that_is_none_is_broken(body: bytes):
    failure = failure_of(body)
    assert failure.kind is FailureKind.BROKEN
    assert "box" in failure.error.message


@pytest.mark.parametrize(
    ("words", "kind", "status"),
    [
        (BUSY, FailureKind.OVERLOADED, 503),
        ("model 'm' not found", FailureKind.MODEL_MISSING, 404),
        ("the runner fell over", FailureKind.OVERLOADED, 500),
        ("the request exceeds the available context size", FailureKind.REQUEST, 400),
    ],
)
def test_error_inside_says_what_happens_next(words: str, kind: FailureKind, status: int):
    body = msgspec.json.encode({"error": words})
    inside = failure_of(body)
    assert (inside.kind, inside.status, inside.detail) == (kind, status, words)
    reader = reader_of()
    assert reader.feed(body + b"\n") == b""
    assert reader.failure is not None
    assert (reader.failure.kind, reader.failure.status) == (kind, status)
    assert not reader.failure.lost


def test_error_inside_that_states_no_status_is_told_without_one():
    told = failure_of(b'{"error": "the runner fell over"}').error.message
    assert told == "Provider box failed while it answered."


def test_generated_answer_comes_back_as_it_was():
    body = b'{"model":"m","response":"hi","done":true,"prompt_eval_count":4,"x":1}'
    given = adapter.answer(body, generation_of(), provider="box")
    assert isinstance(given, NativeAnswer)
    assert (given.body, given.usage) == (body, Usage(prompt=4))
    assert failure_of(b'{"done": true}', generation_of()).kind is FailureKind.BROKEN


def test_error_bodies_are_read():
    error = adapter.error(b'{"error": "model \'m\' not found"}', {})
    assert (error.message, error.code) == ("model 'm' not found", "model_not_found")
    assert adapter.error(b'{"error": "' + BUSY.encode() + b'"}', {}).code is None
    long = adapter.error(b'{"error": "the prompt is longer than the context length"}', {})
    assert long.code == "context_length_exceeded"
    assert adapter.error(b'{"error": "slow down"}', {b"retry-after": b"7"}).retry_after == 7


@pytest.mark.parametrize("body", [b"404 page not found", b"", b"\xff", b"[" * 100_000, b"{}"])
def test_unreadable_error_has_no_words(body: bytes):
    assert adapter.error(body, {}).message == ""


def test_models_are_named():
    body = msgspec.json.encode({"models": [LISTED, {"model": "b"}, {}]})
    assert adapter.listing() == "/tags"
    assert adapter.models(body) == [MODEL, "b"]
    assert adapter.models(b'{"models": null}') == []
    assert loaded(body) == {MODEL, "b"}


@pytest.mark.parametrize("body", [b"{}", b"nothing", b'{"models": [{"name": "\xff"}]}'])
def test_list_of_no_known_form_raises(body: bytes):
    with pytest.raises(msgspec.MsgspecError):
        adapter.models(body)


def test_stream_is_the_same_in_every_split():
    data = stream_of(*lines_of("/api/chat", {"model": MODEL, "messages": ASKING, "think": True}))
    data = data.replace(b"\n", b"\r\n")
    for size in (*range(1, 9), 64, len(data)):
        reader = reader_of()
        given = b"".join(reader.feed(data[at : at + size]) for at in range(0, len(data), size))
        given += reader.end()
        deltas = deltas_of(given)
        assert "".join(d.get("content") or "" for d in deltas) == "echo: how are you today"
        assert "".join(d.get("reasoning_content") or "" for d in deltas) == THOUGHT
        assert (reader.begun, reader.finished, reader.failure) == (True, True, None)
        assert events_of(given).count("[DONE]") == 1


def test_chunks_are_of_one_answer():
    chat = chat_of(stream=True, usage=True)
    data = stream_of(*lines_of("/api/chat", {"model": MODEL, "messages": ASKING}))
    *chunks, done = events_of(reader_of(chat).feed(data))
    assert done == "[DONE]"
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {(c["object"], c["created"], c["model"]) for c in chunks} == {
        ("chat.completion.chunk", 1_700_000_000, MODEL)
    }
    assert [c["choices"][0]["delta"].get("role") for c in chunks[:2]] == ["assistant", None]
    assert chunks[-2]["choices"] == [{"index": 0, "delta": {}, "finish_reason": "stop"}]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == {"prompt_tokens": 4, "completion_tokens": 5, "total_tokens": 9}


def test_usage_chunk_only_when_wanted_and_whole():
    asked = {"model": MODEL, "messages": ASKING}
    reader = reader_of(chat_of(stream=True))
    given = reader.feed(stream_of(*lines_of("/api/chat", asked)))
    assert b"usage" not in given
    assert reader.usage == Usage(prompt=4, completion=5)
    cached = reader_of()
    assert b"usage" not in cached.feed(stream_of(*lines_of("/api/chat", asked, cached=True)))
    assert cached.usage == Usage(prompt=None, completion=5)


def test_tool_calls_are_numbered_through_the_stream():
    def calls(*names: str) -> dict[str, Any]:
        functions = [{"function": {"name": name, "arguments": {"a": 1}}} for name in names]
        return {"message": {"role": "assistant", "content": "", "tool_calls": functions}}

    data = stream_of(calls("f", "g"), calls("h"), {"message": {}, "done": True})
    *chunks, _ = events_of(reader_of(chat_of(stream=True)).feed(data))
    given = [call for d in chunks[:-1] for call in d["choices"][0]["delta"]["tool_calls"]]
    assert [(call["index"], call["function"]["name"]) for call in given] == [
        (0, "f"),
        (1, "g"),
        (2, "h"),
    ]
    assert len({call["id"] for call in given}) == 3
    assert all(call["function"]["arguments"] == '{"a":1}' for call in given)
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_nothing_has_begun_before_the_model_speaks():
    reader = reader_of()
    empty = {"message": {"role": "assistant", "content": ""}, "done": False}
    assert reader.feed(stream_of(empty, empty) + b"\n\n") == b""
    assert not reader.begun
    assert reader.feed(stream_of({"message": {"thinking": "hm"}})) != b""
    assert reader.begun


def test_silent_answer_still_ends_in_order():
    reader = reader_of(chat_of(stream=True))
    given = reader.feed(stream_of({"message": {"content": ""}, "done": True}))
    assert deltas_of(given) == [{"role": "assistant", "content": ""}, {}]
    assert reader.begun
    assert reader.finished


def test_last_line_may_lack_its_end():
    reader = reader_of()
    assert reader.feed(b'{"message":{"content":"hi"},"done":true}') == b""
    assert events_of(reader.end())[-1] == "[DONE]"
    assert (reader.finished, reader.failure) == (True, None)


def test_end_without_done_is_a_failure():
    for data in (b"", stream_of({"message": {"content": "half"}}), b'{"message":{"con'):
        reader = reader_of()
        reader.feed(data)
        assert reader.end() == b""
        assert reader.failure is not None
        assert reader.failure.kind is FailureKind.BROKEN
        assert not reader.finished


def test_error_line_ends_what_was_said():
    reader = reader_of()
    spoken, error = {"message": {"content": "half"}}, {"error": "fell over", "done": True}
    given = reader.feed(stream_of(spoken, error, spoken))
    assert [d.get("content") for d in deltas_of(given)] == ["half"]
    assert reader.failure is not None
    assert reader.failure.lost
    assert (reader.finished, reader.end()) == (False, b"")


@pytest.mark.parametrize(
    "line", [b"not json\n", b"[1]\n", b'{"message": "\xff"}\n', b"{" * 9 + b"\n"]
)
def test_unreadable_line_is_a_failure(line: bytes):
    reader = reader_of()
    assert reader.feed(line) == b""
    assert reader.failure is not None
    assert reader.failure.kind is FailureKind.BROKEN


def test_line_without_an_end_is_bounded():
    reader = reader_of()
    piece = b"x" * (1024 * 1024)
    for _ in range(MAX_LINE // len(piece)):
        assert reader.feed(piece) == b""
        assert reader.failure is None
    assert reader.feed(b"x") == b""
    assert reader.failure is not None
    assert reader.failure.kind is FailureKind.BROKEN


def test_longest_line_passes():
    splitter = LineSplitter()
    assert splitter.feed(b"x" * MAX_LINE) == []
    assert splitter.feed(b"\n") == [b"x" * MAX_LINE]


def test_words_after_the_end_are_not_given_out():
    reader = reader_of(chat_of(stream=True))
    done = {"message": {"content": "hi"}, "done": True}
    given = reader.feed(stream_of(done, done)) + reader.feed(stream_of(done)) + reader.end()
    assert events_of(given).count("[DONE]") == 1
    assert deltas_of(given)[0] == {"role": "assistant", "content": "hi"}


def test_generated_lines_pass_as_they_came():
    data = b'{"response":"h","x":[1.50]}\r\n\n{"response":"i"}\n{"response":"","done":true}\n'
    for size in range(1, len(data) + 1):
        reader = reader_of(generation_of(stream=True))
        given = b"".join(reader.feed(data[at : at + size]) for at in range(0, len(data), size))
        assert given == data.replace(b"\r\n\n", b"\n")
        assert (reader.begun, reader.finished, reader.end()) == (True, True, b"")


def test_chunks_carry_log_probabilities():
    asked = {"model": MODEL, "messages": ASKING, "logprobs": True}
    given = reader_of().feed(stream_of(*lines_of("/api/chat", asked)))
    choices = [c["choices"][0] for c in events_of(given)[:-1] if c["choices"]]
    assert choices[0]["logprobs"]["content"][0]["token"] == "echo: ho"
    assert sum("logprobs" in choice for choice in choices) == 3


def test_schema_beside_json_object_is_kept():
    wanted = {"type": "json_object", "schema": {"type": "object"}}
    assert sent(chat_of(response_format=wanted))["format"] == {"type": "object"}


def test_two_tools_are_both_called():
    asked = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "weather?"}],
        "tools": [WEATHER, TIME],
    }
    given = reader_of(chat_of(stream=True)).feed(stream_of(*lines_of("/api/chat", asked)))
    [delta, _] = deltas_of(given)
    assert [call["function"]["name"] for call in delta["tool_calls"]] == ["get_weather", "get_time"]

"""Gemini's dialect to and from the normal form; every answer is read with the caller's own types."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.completion_create_params import CompletionCreateParamsBase

from aiserver.chat.adapters.adapter import Adapter, Answered, Chat, StreamReader
from aiserver.chat.adapters.google import CARRIED, DROPPED, REFUSED, SHAPED, GoogleAdapter
from aiserver.chat.adapters.google_answers import ENDS, FAILURES
from aiserver.chat.adapters.google_families import EFFORTS, FAMILIES, family_of
from aiserver.chat.adapters.google_messages import NO_SIGNATURE
from aiserver.chat.error_answers import LONGEST_WAIT
from aiserver.chat.failures import Failure, refused
from aiserver.chat.streaming import DONE, MAX_EVENT
from aiserver.contract.errors import InvalidRequest
from aiserver.contract.trace import Usage
from aiserver.providers.catalogue import BY_ID
from aiserver.providers.endpoints import Endpoint
from aiserver.providers.health import FailureKind
from fakes import google as fake

ADAPTER: Adapter = GoogleAdapter()
ENDPOINT = Endpoint("http://127.0.0.1/v1beta", (), BY_ID["Google Cloud"])
RECORDED = Path(__file__).parents[3] / "fixtures" / "upstreams" / "google"
NEWEST = "gemini-3-flash-preview"
HELLO = [{"role": "user", "content": "hello"}]
PIXEL = "data:image/png;base64,aGVsbG8="
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Tells the weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
            "strict": True,
        },
    }
]


def chat(messages: list[Any] = HELLO, *, wants_usage: bool = True, **more: Any) -> Chat:
    return Chat(
        members={"model": "ours", "messages": messages, **more},
        model="ours",
        stream=bool(more.get("stream")),
        wants_usage=wants_usage,
        request_id="req-1",
        created=1_700_000_000,
    )


def sent(messages: list[Any] = HELLO, *, model: str = NEWEST, **more: Any) -> dict[str, Any]:
    """The body that goes upstream; the strict fake takes it too."""
    outgoing = ADAPTER.request(chat(messages, **more), ENDPOINT, model=model, provider="google")
    return fake.checked(json.loads(outgoing.body), model)


def refusal(messages: list[Any] = HELLO, **more: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        ADAPTER.request(chat(messages, **more), ENDPOINT, model=NEWEST, provider="google")
    return caught.value


def recorded(name: str) -> bytes:
    return (RECORDED / name).read_bytes()


def answered(body: bytes | dict[str, Any]) -> tuple[ChatCompletion, Answered]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = ADAPTER.answer(data, chat(), provider="google")
    return ChatCompletion.model_validate_json(answer.body), answer


def failed(body: bytes | dict[str, Any]) -> Failure:
    with pytest.raises(Failure) as caught:
        answered(body)
    return caught.value


def reader(*, wants_usage: bool = True) -> StreamReader:
    return ADAPTER.reader(chat(wants_usage=wants_usage, stream=True), ENDPOINT, provider="google")


def streamed(*pieces: bytes, wants_usage: bool = True) -> tuple[bytes, StreamReader]:
    read = reader(wants_usage=wants_usage)
    given = b"".join(read.feed(piece) for piece in pieces)
    return given + read.end(), read


def chunks(given: bytes) -> list[ChatCompletionChunk]:
    *events, last = given.split(b"\n\n")
    assert last == b""
    return [
        ChatCompletionChunk.model_validate_json(event.removeprefix(b"data: "))
        for event in events
        if event + b"\n\n" != DONE
    ]


def event(*parts: dict[str, Any], **more: Any) -> bytes:
    candidate = {"content": {"parts": list(parts), "role": "model"}, "index": 0, **more}
    return fake.sse({"candidates": [candidate], "responseId": "r1"})


def told(name: str, text: str, call: str = "call_1") -> list[dict[str, Any]]:
    """A conversation in which one function was called and has answered."""
    asked = {"id": call, "type": "function", "function": {"name": name, "arguments": "{}"}}
    return [
        {"role": "user", "content": "weather"},
        {"role": "assistant", "content": None, "tool_calls": [asked]},
        {"role": "tool", "tool_call_id": call, "content": text},
    ]


def test_all_instructions_reach_the_system():
    body = sent(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "hi"},
            {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
        ]
    )
    assert body["systemInstruction"] == {"parts": [{"text": "Be brief."}, {"text": "Be kind."}]}
    assert body["contents"] == [{"role": "user", "parts": [{"text": "hi"}]}]


def test_neighbours_of_one_role_merge():
    body = sent(
        [
            {"role": "user", "content": "a"},
            {"role": "user", "content": "b"},
            {"role": "assistant", "content": "c"},
            {"role": "assistant", "content": ""},
            {"role": "user", "content": "d"},
        ]
    )
    assert [(turn["role"], len(turn["parts"])) for turn in body["contents"]] == [
        ("user", 2),
        ("model", 1),
        ("user", 1),
    ]


def test_instructions_alone_become_the_question():
    body = sent([{"role": "system", "content": "Say hi."}])
    assert body["contents"] == [{"role": "user", "parts": [{"text": "Say hi."}]}]
    assert "systemInstruction" not in body


def test_media_become_parts():
    wav = {"data": "aGVsbG8=", "format": "wav"}
    pdf = {"filename": "a.pdf", "file_data": "data:application/pdf;base64,aGVsbG8="}
    content: list[Any] = [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": PIXEL, "detail": "high"}},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.PNG?size=1"}},
        {"type": "image_url", "image_url": {"url": "https://example.com/picture"}},
        {"type": "input_audio", "input_audio": wav},
        {"type": "file", "file": pdf},
    ]
    [turn] = sent([{"role": "user", "content": content}])["contents"]
    assert turn["parts"] == [
        {"text": "look"},
        {"inlineData": {"mimeType": "image/png", "data": "aGVsbG8="}},
        {"fileData": {"fileUri": "https://example.com/a.PNG?size=1", "mimeType": "image/png"}},
        {"fileData": {"fileUri": "https://example.com/picture"}},
        {"inlineData": {"mimeType": "audio/wav", "data": "aGVsbG8="}},
        {"inlineData": {"mimeType": "application/pdf", "data": "aGVsbG8="}},
    ]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
        {"type": "image_url", "image_url": {}},
        {"type": "image_url", "image_url": {"url": "data:image/png,raw"}},
        {"type": "image_url", "image_url": {"url": "data:;base64"}},
        {"type": "input_audio", "input_audio": {"data": "", "format": "midi"}},
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "hologram"},
        "text",
    ],
)
def test_unsendable_part_is_named(part: Any):
    error = refusal([{"role": "user", "content": [part]}])
    assert error.param == "messages"
    assert error.message.startswith("messages[0].content")


@pytest.mark.parametrize("messages", [[], [{"role": "user", "content": ""}], [{"role": "robot"}]])
def test_nothing_to_ask_is_refused(messages: list[Any]):
    assert refusal(messages).param == "messages"


def test_tool_results_find_their_call():
    extra = {"google": {"thought_signature": fake.SIGNATURE}}
    calls = [
        {
            "id": f"call_{index}",
            "type": "function",
            "function": {"name": name, "arguments": arguments},
            **({"extra_content": extra} if not index else {}),
        }
        for index, (name, arguments) in enumerate([("look", '{"at": 1}'), ("listen", "")])
    ]
    body = sent(
        [
            {"role": "user", "content": "go"},
            {"role": "assistant", "content": "Well.", "tool_calls": calls},
            {"role": "tool", "tool_call_id": "call_1", "content": "birds"},
            {"role": "tool", "tool_call_id": "call_0", "content": '{"seen": [1]}'},
        ]
    )
    assert body["contents"][1:] == [
        {
            "role": "model",
            "parts": [
                {"text": "Well."},
                {
                    "functionCall": {"id": "call_0", "name": "look", "args": {"at": 1}},
                    "thoughtSignature": fake.SIGNATURE,
                },
                {"functionCall": {"id": "call_1", "name": "listen", "args": {}}},
            ],
        },
        {
            "role": "user",
            "parts": [
                {
                    "functionResponse": {
                        "id": "call_1",
                        "name": "listen",
                        "response": {"result": "birds"},
                    }
                },
                {
                    "functionResponse": {
                        "id": "call_0",
                        "name": "look",
                        "response": {"seen": [1]},
                    }
                },
            ],
        },
    ]


@pytest.mark.parametrize("text", ["", "[1, 2]", "3", '"quoted"', "{half"])
def test_result_that_is_no_object_is_wrapped(text: str):
    [part] = sent(told("look", text))["contents"][-1]["parts"]
    assert part["functionResponse"]["response"] == {"result": text}


@pytest.mark.parametrize(
    ("model", "signature"), [(NEWEST, NO_SIGNATURE), ("gemini-2.5-flash", None)]
)
def test_lost_signature_is_made_up_for(model: str, signature: str | None):
    [part] = sent(told("look", "sea"), model=model)["contents"][1]["parts"]
    assert part.get("thoughtSignature") == signature


def test_text_signature_goes_back():
    extra = {"google": {"thought_signature": "c2ln"}}
    body = sent([*HELLO, {"role": "assistant", "content": "hi", "extra_content": extra}, *HELLO])
    assert body["contents"][1]["parts"] == [{"text": "hi", "thoughtSignature": "c2ln"}]


@pytest.mark.parametrize("arguments", ["{", "[1]", "text", "[" * 100_000])
def test_unreadable_arguments_are_refused(arguments: str):
    messages = told("look", "sea")
    messages[1]["tool_calls"][0]["function"]["arguments"] = arguments
    assert "arguments of look" in refusal(messages).message


def test_result_of_unknown_call_is_refused():
    messages = told("look", "sea")
    messages[2]["tool_call_id"] = "another"
    assert refusal(messages).message.startswith("messages[2].tool_call_id")


def test_tools_are_declared_as_they_are():
    [tool] = sent(tools=TOOLS)["tools"]
    assert tool["functionDeclarations"] == [
        {
            "name": "get_weather",
            "description": "Tells the weather",
            "parametersJsonSchema": TOOLS[0]["function"]["parameters"],
        }
    ]


@pytest.mark.parametrize(
    ("choice", "calling"),
    [
        ("auto", {"mode": "AUTO"}),
        ("none", {"mode": "NONE"}),
        ("required", {"mode": "ANY"}),
        (
            {"type": "function", "function": {"name": "get_weather"}},
            {"mode": "ANY", "allowedFunctionNames": ["get_weather"]},
        ),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": TOOLS}},
            {"mode": "VALIDATED", "allowedFunctionNames": ["get_weather"]},
        ),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": TOOLS}},
            {"mode": "ANY", "allowedFunctionNames": ["get_weather"]},
        ),
    ],
)
def test_tool_choice_becomes_mode(choice: Any, calling: dict[str, Any]):
    body = sent(tools=TOOLS, tool_choice=choice)
    assert body["toolConfig"] == {"functionCallingConfig": calling}
    assert "toolConfig" not in sent(tool_choice=choice)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tools": [{"type": "custom", "custom": {"name": "a"}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools"),
        ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "custom"}}, "tool_choice"),
        ({"response_format": {"type": "grammar"}}, "response_format"),
        ({"reasoning_effort": "frantic"}, "reasoning_effort"),
        ({"stop": list("abcdef")}, "stop"),
        ({"logit_bias": {"50256": -100}}, "logit_bias"),
        ({"modalities": ["text", "audio"]}, "modalities"),
    ],
)
def test_what_gemini_lacks_is_refused(more: dict[str, Any], param: str):
    assert refusal(**more).param == param


@pytest.mark.parametrize(
    ("wanted", "config"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"responseMimeType": "application/json"}),
        (
            {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
            {"responseMimeType": "application/json", "responseJsonSchema": {"type": "object"}},
        ),
    ],
)
def test_response_format_becomes_mime_type(wanted: Any, config: dict[str, Any] | None):
    assert sent(response_format=wanted).get("generationConfig") == config


def test_settings_are_carried():
    config = sent(
        temperature=0.5,
        top_p=0.9,
        max_tokens=5,
        max_completion_tokens=7,
        stop="END",
        seed=3,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        n=2,
        logprobs=True,
        top_logprobs=4,
        user="u",
        parallel_tool_calls=False,
    )["generationConfig"]
    assert config == {
        "temperature": 0.5,
        "topP": 0.9,
        "maxOutputTokens": 7,
        "stopSequences": ["END"],
        "seed": 3,
        "presencePenalty": 0.1,
        "frequencyPenalty": 0.2,
        "candidateCount": 2,
        "responseLogprobs": True,
        "logprobs": 4,
    }


def test_neutral_settings_stay_at_home():
    body = sent(
        temperature=None, n=1, presence_penalty=0, frequency_penalty=0.0, logprobs=False, stop=[]
    )
    assert "generationConfig" not in body
    assert sent(temperature=0)["generationConfig"] == {"temperature": 0}


def test_every_member_has_one_fate():
    fates = [set(CARRIED), SHAPED, DROPPED, set(REFUSED)]
    known = set(CompletionCreateParamsBase.__annotations__)
    assert known <= set().union(*fates)
    assert sum(map(len, fates)) == len(set().union(*fates))


@pytest.mark.parametrize(
    ("model", "effort", "thinking"),
    [
        ("gemini-3.8-flash", "medium", {"thinkingLevel": "MEDIUM", "includeThoughts": True}),
        ("gemini-flash-latest", "none", {"thinkingLevel": "MINIMAL"}),
        ("gemini-3.1-pro-preview", "minimal", {"thinkingLevel": "LOW", "includeThoughts": True}),
        ("gemini-2.5-flash", "high", {"thinkingBudget": 24576, "includeThoughts": True}),
        ("gemini-2.5-flash-lite", "none", {"thinkingBudget": 0}),
        ("gemini-2.5-pro", "none", {"thinkingBudget": 128}),
        ("gemini-2.0-flash", "high", None),
    ],
)
def test_effort_fits_the_model(model: str, effort: str, thinking: dict[str, Any] | None):
    config = sent(model=model, reasoning_effort=effort).get("generationConfig", {})
    assert config.get("thinkingConfig") == thinking


def test_every_family_is_complete():
    assert all(not row.efforts or tuple(row.efforts) == EFFORTS for row in FAMILIES)
    assert family_of("anything") is FAMILIES[-1]


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("gemini-2.5-pro", "/models/gemini-2.5-pro:generateContent"),
        ("models/gemini-2.5-pro", "/models/gemini-2.5-pro:generateContent"),
        ("../files/x?key=1#", "/models/..%2Ffiles%2Fx%3Fkey%3D1%23:generateContent"),
        ("a:streamGenerateContent", "/models/a%3AstreamGenerateContent:generateContent"),
        ("a\r\nHost: b", "/models/a%0D%0AHost%3A%20b:generateContent"),
    ],
)
def test_model_name_stays_in_its_segment(model: str, path: str):
    assert ADAPTER.request(chat(), ENDPOINT, model=model, provider="google").path == path


def test_stream_asks_for_events():
    outgoing = ADAPTER.request(chat(stream=True), ENDPOINT, model="m", provider="google")
    assert outgoing.path == "/models/m:streamGenerateContent?alt=sse"


def test_whole_answer_keeps_everything():
    answer, known = answered(recorded("text.json"))
    message = answer.choices[0].message
    assert message.content == "Mars has two moons."
    assert message.model_extra == {
        "reasoning_content": "Counting the moons.",
        "extra_content": {"google": {"thought_signature": "c2lnbmF0dXJlLW9mLXRleHQ="}},
    }
    assert (answer.id, answer.model) == ("5q4Wad6yF-y1vdIP_q_zgAw", NEWEST)
    assert answer.created == 1_700_000_000
    assert answer.choices[0].finish_reason == "stop"
    assert known.usage == Usage(prompt=34, completion=56, cached=20, reasoning=38)
    assert answer.usage is not None
    assert answer.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": 34,
        "completion_tokens": 56,
        "total_tokens": 90,
        "prompt_tokens_details": {"cached_tokens": 20},
        "completion_tokens_details": {"reasoning_tokens": 38},
    }


def test_function_calls_become_tool_calls():
    answer, known = answered(recorded("tools.json"))
    [choice] = answer.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    calls: list[Any] = list(choice.message.tool_calls or [])
    assert [(call.function.name, call.function.arguments) for call in calls] == [
        ("get_weather", '{"city":"Oslo","days":2}'),
        ("get_weather", '{"city":"Rome"}'),
        ("get_time", "{}"),
    ]
    assert calls[0].extra_content == {"google": {"thought_signature": "c2lnbmVkIGJ5IHRoZSBmYWtl"}}
    assert calls[1].model_extra == {}
    assert calls[2].id == "own-id-1"
    assert len({call.id for call in calls}) == 3
    assert all(len(call.id) <= 40 for call in calls)
    assert known.usage == Usage(prompt=61, completion=40)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is None


def test_answered_calls_go_back_as_they_came():
    answer, _ = answered(recorded("tools.json"))
    message = answer.choices[0].message.model_dump(exclude_none=True)
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": "fine"}
        for call in message["tool_calls"]
    ]
    parts = sent([*HELLO, message, *results])["contents"][1]["parts"]
    given = json.loads(recorded("tools.json"))["candidates"][0]["content"]["parts"]
    assert [part.get("thoughtSignature") for part in parts] == [
        part.get("thoughtSignature") for part in given
    ]
    assert [part["functionCall"]["args"] for part in parts] == [
        part["functionCall"].get("args", {}) for part in given
    ]


def test_missing_counts_stay_missing():
    text = {"content": {"parts": [{"text": "hi"}]}, "finishReason": "STOP"}
    answer, known = answered({"candidates": [text]})
    assert (answer.usage, known.usage) == (None, None)
    counts = {"promptTokenCount": 5, "totalTokenCount": 5, "cachedContentTokenCount": 0}
    answer, known = answered({"candidates": [text], "usageMetadata": counts})
    assert known.usage == Usage(prompt=5, completion=None, cached=0)
    counts = {"promptTokenCount": -1, "candidatesTokenCount": 10**12}
    assert answered({"candidates": [text], "usageMetadata": counts})[1].usage == Usage()


def test_every_candidate_is_a_choice():
    candidates = [
        {"index": index, "content": {"parts": [{"text": text}]}, "finishReason": "STOP"}
        for index, text in enumerate("ab")
    ]
    answer, _ = answered({"candidates": candidates})
    assert [(each.index, each.message.content) for each in answer.choices] == [(0, "a"), (1, "b")]
    assert (answer.id, answer.model) == ("req-1", "ours")


def test_logprobs_are_carried():
    chosen = [{"token": "hé", "tokenId": 1, "logProbability": -0.5}]
    tops = [{"candidates": [*chosen, {"token": "ho", "logProbability": -1.5}]}]
    result = {"chosenCandidates": chosen, "topCandidates": tops}
    text = {"content": {"parts": [{"text": "hé"}]}, "logprobsResult": result}
    answer, _ = answered({"candidates": [text]})
    assert answer.choices[0].logprobs is not None
    [token] = answer.choices[0].logprobs.content or []
    assert (token.token, token.logprob, token.bytes) == ("hé", -0.5, [104, 195, 169])
    assert [top.token for top in token.top_logprobs] == ["hé", "ho"]


@pytest.mark.parametrize("reason", ENDS)
def test_ends_are_of_the_normal_form(reason: str):
    body = {"candidates": [{"finishReason": reason}]}
    answer, _ = answered(body)
    assert answer.choices[0].finish_reason == ENDS[reason]
    assert answer.choices[0].message.content == ""
    [*_, last] = chunks(streamed(fake.sse(body))[0])
    assert last.choices[0].finish_reason == ENDS[reason]


@pytest.mark.parametrize("reason", [*sorted(FAILURES), "OTHER", "SOMETHING_NEW"])
def test_useless_end_is_a_failure(reason: str):
    body = {"candidates": [{"finishReason": reason, "finishMessage": "bad call"}]}
    failure = failed(body)
    assert (failure.kind, failure.detail) == (FailureKind.BROKEN, "bad call")
    assert reason in failure.error.message
    given, read = streamed(fake.sse(body))
    assert (given, read.begun, read.finished) == (b"", False, False)
    assert read.failure is not None
    assert read.failure.kind is FailureKind.BROKEN


def test_unknown_end_of_a_text_is_stop():
    text = {"content": {"parts": [{"text": "hi"}]}, "finishReason": "OTHER"}
    assert answered({"candidates": [text]})[0].choices[0].finish_reason == "stop"


def test_blocked_prompt_is_the_callers():
    failure = failed(recorded("blocked.json"))
    given, read = streamed(b"data: " + json.dumps(json.loads(recorded("blocked.json"))).encode())
    assert given == b""
    for each in (failure, read.failure):
        assert each is not None
        assert each.kind is FailureKind.REQUEST
        assert (each.error.http_status, each.error.error_reason) == (400, "content_filter")
        assert "PROHIBITED_CONTENT" in each.error.message
        assert not each.lost


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"candidates": 3}', b"[" * 100_000])
def test_unreadable_answer_is_broken(body: bytes):
    failure = failed(body)
    assert (failure.kind, failure.lost) == (FailureKind.BROKEN, True)


def test_error_inside_an_answer_keeps_its_kind():
    assert failed(recorded("quota.json")).kind is FailureKind.LIMITED


def test_stream_gives_chunks_of_the_normal_form():
    given, read = streamed(recorded("text.sse"))
    assert given.count(DONE) == 1
    assert given.endswith(DONE)
    *said, usage = chunks(given)
    assert [chunk.choices[0].delta.role for chunk in said] == ["assistant", *[None] * 4]
    assert [chunk.choices[0].delta.content for chunk in said] == [
        None,
        "Mars has ",
        "two moons.",
        None,
        None,
    ]
    assert said[0].choices[0].delta.model_extra == {"reasoning_content": "Counting the moons."}
    assert [chunk.choices[0].finish_reason for chunk in said] == [*[None] * 4, "stop"]
    assert {(chunk.id, chunk.model, chunk.created) for chunk in said} == {
        ("5q4Wad6yF-y1vdIP_q_zgAw", NEWEST, 1_700_000_000)
    }
    assert usage.choices == []
    assert usage.usage == answered(recorded("text.json"))[0].usage
    assert (read.begun, read.finished, read.failure) == (True, True, None)
    assert read.usage == Usage(prompt=34, completion=56, cached=20, reasoning=38)


def test_streamed_calls_equal_whole_ones():
    given, _ = streamed(recorded("tools.sse"))
    said = [chunk.choices[0] for chunk in chunks(given) if chunk.choices]
    assert said[-1].finish_reason == "tool_calls"
    calls = [call for choice in said for call in choice.delta.tool_calls or []]
    assert [call.index for call in calls] == [0, 1, 2]
    whole = answered(recorded("tools.json"))[0].choices[0].message.tool_calls or []
    assert [call.model_dump(exclude={"index"}) for call in calls] == [
        call.model_dump() for call in whole
    ]


def test_usage_chunk_only_when_wanted():
    given, read = streamed(recorded("text.sse"), wants_usage=False)
    assert b"usage" not in given
    assert read.usage is not None


@given(st.lists(st.integers(0, 2000)), st.sampled_from(["text.sse", "tools.sse"]))
def test_any_split_gives_the_same(cuts: list[int], name: str):
    data = recorded(name)
    places = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    pieces = [data[start:end] for start, end in itertools.pairwise(places)]
    assert streamed(*pieces)[0] == streamed(data)[0]


@given(st.binary(), st.integers(0, 1500), st.integers(0, 20))
def test_garbage_never_raises(noise: bytes, at: int, cut: int):
    data = recorded("text.sse")
    given, read = streamed(data[:at] + noise + data[at + cut :])
    assert read.finished is (read.failure is None)
    assert given.count(DONE) == (1 if read.finished else 0)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["candidates", "content", "parts", "text", "functionCall",
      "args", "finishReason", "index", "error", "usageMetadata", "promptTokenCount"]), inner)
), max_leaves=8))  # fmt: skip
def test_any_json_never_raises(value: Any):
    given, read = streamed(fake.sse(value))
    assert read.finished is (read.failure is None)
    chunks(given)


@pytest.mark.parametrize("keep", [1, 40, 200, 700])
def test_cut_stream_is_broken(keep: int):
    given, read = streamed(recorded("text.sse")[:keep])
    assert DONE not in given
    assert not read.finished
    assert read.failure is not None
    assert (read.failure.kind, read.failure.lost) == (FailureKind.BROKEN, True)


def test_one_unfinished_choice_breaks_the_stream():
    both = [
        {"index": index, "content": {"parts": [{"text": "a"}]}, "finishReason": reason}
        for index, reason in enumerate(("STOP", None))
    ]
    assert streamed(fake.sse({"candidates": both}))[1].failure is not None
    both[1]["finishReason"] = "MAX_TOKENS"
    given, _ = streamed(fake.sse({"candidates": both}))
    ends = {chunk.choices[0].index: chunk.choices[0].finish_reason for chunk in chunks(given)}
    assert ends == {0: "stop", 1: "length"}


def test_end_on_every_event_ends_once():
    given, _ = streamed(*(event({"text": text}, finishReason="STOP") for text in "abc"))
    said = [chunk.choices[0] for chunk in chunks(given)]
    assert "".join(choice.delta.content or "" for choice in said) == "abc"
    assert [choice.finish_reason for choice in said] == [None, None, None, "stop"]


def test_last_event_without_blank_line_counts():
    assert streamed(event({"text": "hi"}, finishReason="STOP").rstrip())[1].finished


def test_begins_with_the_first_word():
    read = reader()
    assert read.feed(b": comment\n\n" + event({"text": ""})) == b""
    assert not read.begun
    assert read.feed(event({"text": "hm", "thought": True})) != b""
    assert read.begun


def test_error_first_may_fail_over():
    given, read = streamed(fake.sse(json.loads(recorded("quota.json"))))
    assert (given, read.begun) == (b"", False)
    assert read.failure is not None
    assert (read.failure.kind, read.failure.lost) == (FailureKind.LIMITED, False)
    assert read.failure.retry_after == pytest.approx(34.07, abs=0.01)


def test_error_after_words_keeps_them():
    given, read = streamed(event({"text": "half"}), fake.sse(fake.OVERLOADED), event({"text": "x"}))
    assert [chunk.choices[0].delta.content for chunk in chunks(given)] == ["half"]
    assert read.failure is not None
    assert (read.failure.kind, read.failure.lost) == (FailureKind.OVERLOADED, True)


def test_named_error_needs_no_code():
    _, read = streamed(fake.sse({"error": {"status": "RESOURCE_EXHAUSTED"}}))
    assert read.failure is not None
    assert read.failure.kind is FailureKind.LIMITED


def test_unreadable_arguments_break_the_answer():
    call = b'{"candidates":[{"content":{"parts":[{"functionCall":{"args":{"a":"\xff"}}}]}}]}'
    assert failed(call).kind is FailureKind.BROKEN
    failure = streamed(b"data: " + call + b"\n\n")[1].failure
    assert failure is not None
    assert failure.kind is FailureKind.BROKEN


@pytest.mark.parametrize(("index", "taken"), [(-1, False), (127, True), (128, False)])
def test_number_of_choices_is_bounded(index: int, taken: bool):
    candidate = {"index": index, "content": {"parts": [{"text": "a"}]}, "finishReason": "STOP"}
    assert streamed(fake.sse({"candidates": [candidate]}))[1].finished is taken


def test_endless_event_is_bounded():
    read = reader()
    assert read.feed(b"data: " + b"x" * MAX_EVENT) == b""
    assert read.failure is not None
    assert read.feed(b"more") == b""


def test_bad_key_is_our_credentials():
    error = ADAPTER.error(recorded("bad_key.json"), {})
    assert error.status == 401
    assert refused("google", 401, error).kind is FailureKind.CREDENTIALS


def test_wrong_region_is_not_the_callers():
    body = json.dumps(fake.error(400, "FAILED_PRECONDITION", "User location is not supported."))
    assert ADAPTER.error(body.encode(), {}).status == 403


def test_quota_names_its_delay():
    error = ADAPTER.error(recorded("quota.json"), {b"retry-after": b"1"})
    assert (error.status, error.retry_after) == (429, pytest.approx(34.074824224))
    assert error.message.startswith("You exceeded your current quota")


@pytest.mark.parametrize(
    ("delay", "seconds"),
    [("9s", 9.0), ("999999999999s", LONGEST_WAIT), ("-1s", None), ("1e9s", None), (7, None)],
)
def test_delay_is_read_and_bounded(delay: Any, seconds: float | None):
    body = json.dumps(fake.error(429, "RESOURCE_EXHAUSTED", "slow", {"retryDelay": delay}))
    assert ADAPTER.error(body.encode(), {}).retry_after == seconds


def test_header_serves_where_no_delay_is_named():
    assert ADAPTER.error(b"<html>", {b"retry-after": b"7"}).retry_after == 7.0


def test_error_in_a_list_is_read():
    error = ADAPTER.error(recorded("no_signature.json"), {})
    assert (error.status, error.param) == (400, None)
    assert "thought_signature" in error.message


def test_untaken_member_is_named():
    message = "Thinking level is not supported for this model."
    body = json.dumps(fake.error(400, "INVALID_ARGUMENT", message)).encode()
    assert ADAPTER.error(body, {}).param == "reasoning_effort"


def test_missing_model_is_named_so():
    body = json.dumps(fake.error(404, "NOT_FOUND", "models/x is not found")).encode()
    failure = refused("google", 404, ADAPTER.error(body, {}))
    assert (failure.kind, failure.error.error_reason) == (
        FailureKind.MODEL_MISSING,
        "model_not_found",
    )


@given(st.binary() | st.recursive(st.none() | st.text() | st.integers(), lambda inner: (
    st.lists(inner) | st.dictionaries(st.sampled_from(["error", "details", "code"]), inner)
)).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_any_error_body_is_read(body: bytes):
    error = ADAPTER.error(body, {})
    assert error.status is None or 400 <= error.status < 600


def test_only_chat_models_are_listed():
    assert ADAPTER.listing() == "/models?pageSize=1000"
    assert ADAPTER.models(recorded("models.json")) == [NEWEST, "gemini-2.5-pro"]


@pytest.mark.parametrize("question", ["hello", "weather in Oslo and in Rome", "tell me"])
def test_stream_and_whole_answer_agree(question: str):
    body = sent([{"role": "user", "content": question}], tools=TOOLS, reasoning_effort="low")
    whole, known = answered(fake.whole(body, NEWEST))
    given, read = streamed(*(fake.sse(each) for each in fake.events(body, NEWEST)))
    said = [chunk.choices[0] for chunk in chunks(given) if chunk.choices]
    message = whole.choices[0].message
    assert "".join(choice.delta.content or "" for choice in said) == (message.content or "")
    assert said[-1].finish_reason == whole.choices[0].finish_reason
    calls = [call.id for choice in said for call in choice.delta.tool_calls or []]
    assert calls == [call.id for call in message.tool_calls or []]
    assert read.usage == known.usage

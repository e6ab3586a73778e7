"""Ollama's generate in both directions: prompts as chats, answers of the normal form as its own."""

import json
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from aiserver.chat.generation import (
    GenerationForm,
    native_members,
    normal_members,
    speaks_as_ollama,
)
from aiserver.chat.ollama_operations import OllamaGenerateResponse, OllamaGeneration
from aiserver.contract.binding import Binder
from aiserver.contract.errors import InvalidRequest, UpstreamFailed
from aiserver.contract.trace import Usage

NOW = datetime(2026, 8, 21, 18, 48, 22, 706_015, tzinfo=UTC)
WRITTEN = "2026-08-21T18:48:22.706015Z"
PNG = "iVBORw0KGgo="


class StillClock:
    """Stands at NOW, three seconds after the call began."""

    def now(self) -> datetime:
        return NOW

    def monotonic(self) -> float:
        return 103.0


form = GenerationForm(StillClock(), began=100.0)


def normal(*, stream: bool = False, **members: Any) -> dict[str, Any]:
    return normal_members(native_members({"prompt": "hello", **members}), stream=stream)


def completion(message: dict[str, Any], reason: str = "stop") -> bytes:
    choice = {"index": 0, "message": message, "finish_reason": reason}
    return msgspec.json.encode({"id": "c", "model": "theirs", "choices": [choice]})


async def lines_of(*pieces: bytes, usage: Usage | None = None) -> list[dict[str, Any]]:
    async def events() -> AsyncGenerator[bytes]:
        for piece in pieces:
            yield piece

    given = b"".join([line async for line in form.lines(events(), lambda: usage)])
    return [json.loads(line) for line in given.splitlines()]


def event(**delta: Any) -> bytes:
    reason = delta.pop("finish_reason", None)
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return b"data: " + msgspec.json.encode({"model": "theirs", "choices": [choice]}) + b"\n\n"


def test_prompt_becomes_a_chat():
    assert normal(system="be brief", stream=True) == {
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "hello"},
        ],
        "stream": True,
    }
    assert normal() == {"messages": [{"role": "user", "content": "hello"}]}


@pytest.mark.parametrize(
    ("options", "members"),
    [
        ({"num_predict": 5, "temperature": 0, "seed": 3},
         {"max_tokens": 5, "temperature": 0, "seed": 3}),
        ({"num_predict": -1}, {}),
        ({"top_p": 0.5, "top_k": 4, "min_p": 0.1}, {"top_p": 0.5, "top_k": 4, "min_p": 0.1}),
        ({"stop": "END"}, {"stop": ["END"]}),
        ({"stop": None, "seed": None, "num_ctx": 64, "mirostat": 2, "num_gpu": 1}, {}),
    ],
)  # fmt: skip
def test_options_become_members(options: dict[str, Any], members: dict[str, Any]):
    given = normal(options=options)
    del given["messages"]
    assert given == members


@pytest.mark.parametrize(
    ("wanted", "response_format"),
    [
        ("json", {"type": "json_object"}),
        ({"type": "object"},
         {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}}),
        ("", None),
    ],
)  # fmt: skip
def test_format_becomes_response_format(wanted: Any, response_format: Any):
    assert normal(format=wanted).get("response_format") == response_format


@pytest.mark.parametrize(("think", "effort"), [("high", "high"), (False, "none"), (True, None)])
def test_thinking_becomes_effort(think: Any, effort: str | None):
    assert normal(think=think).get("reasoning_effort") == effort


@pytest.mark.parametrize(
    ("image", "kind"),
    [(PNG, "png"), ("/9j/4AAQ", "jpeg"), ("R0lGODlh", "gif"), ("UklGRiIA", "webp")],
)
def test_images_become_parts(image: str, kind: str):
    [message] = normal(images=[image, f"data:image/{kind};base64,{image}"])["messages"]
    part = {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{image}"}}
    assert message["content"] == [{"type": "text", "text": "hello"}, part, part]


@pytest.mark.parametrize("image", ["http://127.0.0.1/a.png", "https://h/a", "file:///etc/passwd"])
def test_images_at_addresses_are_refused(image: str):
    with pytest.raises(InvalidRequest, match="send the image itself") as raised:
        native_members({"prompt": "look", "images": [PNG, image]})
    assert raised.value.param == "images"


def test_native_members_keep_all_but_ours():
    sent = {"prompt": "p", "options": {"num_gpu": 1, "stop": "x", "seed": None}, "raw": True}
    ours = {"refId": "r", "provider": "box", "tag": "t", "replyTo": "u", "suffix": "", "images": []}
    assert native_members({**sent, **ours, "keep_alive": 0, "context": None}) == {
        "prompt": "p",
        "options": {"num_gpu": 1, "stop": ["x"]},
        "raw": True,
        "keep_alive": 0,
    }


def test_answer_reads_as_ollamas():
    answer = completion({"content": "hi", "reasoning_content": "hm"}, "length")
    assert form.generated(answer, Usage(prompt=4, completion=5)) == {
        "model": "theirs",
        "created_at": WRITTEN,
        "response": "hi",
        "thinking": "hm",
        "done": True,
        "done_reason": "length",
        "total_duration": 3_000_000_000,
        "prompt_eval_count": 4,
        "eval_count": 5,
    }


def test_missing_counts_are_left_out():
    given = form.generated(completion({"content": None}), Usage(completion=0))
    assert (given["response"], given["eval_count"]) == ("", 0)
    assert "prompt_eval_count" not in given
    assert "eval_count" not in form.generated(completion({"content": "a"}), None)


@pytest.mark.parametrize("answer", [b'{"choices": []}', b"{}", b"not json", b"\xff"])
def test_answer_without_a_choice_is_a_failure(answer: bytes):
    with pytest.raises(UpstreamFailed):
        form.generated(answer, None)


def test_contract_has_numbers_that_fit():
    long, short = 5_043_500_667, 25_026_458
    given = form.in_contract({
        "model": "m",
        "created_at": "2026-08-21T18:48:22.706015396+02:00",
        "response": "hi",
        "done": True,
        "total_duration": long,
        "load_duration": short,
        "prompt_eval_count": 4,
    })  # fmt: skip
    assert given["created_at"] == int(NOW.timestamp()) - 7200
    assert (given.get("total_duration"), given["load_duration"]) == (None, short)
    assert given["prompt_tokens"] == 4
    assert msgspec.convert(given, OllamaGenerateResponse).response == "hi"


@pytest.mark.parametrize("written", [None, 5, "yesterday"])
def test_unreadable_time_is_now(written: Any):
    assert form.in_contract({"created_at": written})["created_at"] == int(NOW.timestamp())


@pytest.mark.parametrize(
    ("path", "members", "theirs"),
    [
        ("/api/generate", {"stream": False}, True),
        ("/api/generate", {"stream": True}, True),
        ("/api/generate", {}, False),
        ("/api/generate", {"stream": None}, False),
        ("/api/OllamaGeneration", {"stream": False}, False),
    ],
)
def test_callers_of_ollama_say_stream(path: str, members: dict[str, Any], theirs: bool):
    assert speaks_as_ollama(path, members) is theirs


async def test_events_become_lines():
    given = await lines_of(
        event(role="assistant", content="") + event(reasoning_content="hm"),
        event(content="h") + event(content="i") + event(finish_reason="stop"),
        b"data: [DONE]\n\n",
        usage=Usage(prompt=4, completion=2),
    )
    shared = {"model": "theirs", "created_at": WRITTEN, "done": False}
    assert given == [
        {**shared, "response": "", "thinking": "hm"},
        {**shared, "response": "h"},
        {**shared, "response": "i"},
        {
            **shared,
            "response": "",
            "done": True,
            "done_reason": "stop",
            "total_duration": 3_000_000_000,
            "prompt_eval_count": 4,
            "eval_count": 2,
        },
    ]


async def test_lines_are_the_same_in_every_split():
    data = event(content="h") + b": ping\n\n" + event(content="i", finish_reason="length")
    data += b"data: [DONE]\n\n"
    whole = await lines_of(data)
    assert whole[-1]["done_reason"] == "length"
    for size in (1, 2, 7):
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        assert await lines_of(*pieces) == whole


async def test_broken_stream_has_no_last_line():
    async def events() -> AsyncGenerator[bytes]:
        yield event(content="half")
        raise UpstreamFailed("Provider box broke off its answer.")

    lines = form.lines(events(), lambda: None)
    assert json.loads(await anext(lines))["response"] == "half"
    with pytest.raises(UpstreamFailed):
        await anext(lines)


async def test_lines_close_their_source():
    closed: list[bool] = []

    async def events() -> AsyncGenerator[bytes]:
        try:
            yield event(content="half")
            yield event(content="more")
        finally:
            closed.append(True)

    lines = form.lines(events(), lambda: None)
    await anext(lines)
    await lines.aclose()
    assert closed == [True]


@pytest.mark.parametrize("members", [{"prompt": ""}, {}, {"prompt": None}])
def test_empty_prompt_is_a_field_error(members: dict[str, Any]):
    with pytest.raises(InvalidRequest) as raised:
        Binder(OllamaGeneration).bind({"model": "m", **members})
    [problem] = raised.value.fields
    assert (problem.error_code, problem.field_name) == ("NotEmpty", "Prompt")


def test_typed_clients_spell_members_their_way():
    sent = {"Model": "m", "Prompt": "p", "Options": {"NumPredict": 5}, "KeepAlive": "5m"}
    members: dict[str, Any] = dict(sent)
    bound = Binder(OllamaGeneration).bind(members)
    assert bound.options is not None
    assert bound.options.num_predict == 5
    assert members == {
        "model": "m", "prompt": "p", "options": {"num_predict": 5}, "keep_alive": "5m",
    }  # fmt: skip

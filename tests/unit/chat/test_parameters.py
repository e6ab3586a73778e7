"""Parameters that a model refuses are left out; what a request says is never touched."""

import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiserver.chat.error_answers import error_answer
from aiserver.chat.failures import Failure, refused
from aiserver.chat.parameters import MOST_LEARNED, Adjusted, Change, Parameters
from fakes.providers import provider

MESSAGES: list[Any] = [{"role": "user", "content": "hello"}]
SAMPLING = {"temperature": 0.2, "top_p": 0.9, "top_k": 5}


def asking(**more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": MESSAGES, **more}


def fitted(members: dict[str, Any], kind: str, model: str) -> Adjusted:
    return Parameters().adjusted(members, provider_id=1, ai_type_id=kind, model=model)


def saying(message: str, *, status: int = 400, **more: Any) -> Failure:
    answer = error_answer(b"", {})
    answer.message = message
    answer.param, answer.code = more.get("param"), more.get("code")
    return refused("acme", status, answer)


@pytest.mark.parametrize("model", ["o1", "o3-mini", "o4-mini", "gpt-5", "gpt-5-mini-2025-08-07"])
def test_reasoning_models_get_what_they_take(model: str) -> None:
    asked = asking(max_tokens=9, temperature=0.2, presence_penalty=1, seed=4)
    assert fitted(asked, "Open AI", model) == Adjusted(
        asking(max_completion_tokens=9, seed=4), ("temperature", "presence_penalty")
    )
    assert asked["max_tokens"] == 9


@pytest.mark.parametrize("model", ["gpt-4o", "gpt-4.1-mini", "o", "my-o1", "chatgpt-4o-latest"])
def test_other_models_get_the_same_dict(model: str) -> None:
    asked = asking(max_tokens=9, **SAMPLING)
    result = fitted(asked, "Open AI", model)
    assert result.members is asked
    assert result.dropped == ()


@pytest.mark.parametrize("kind", ["Custom", "OpenRouter", "Local"])
def test_names_mean_nothing_at_other_providers(kind: str) -> None:
    asked = asking(max_tokens=9, **SAMPLING)
    assert fitted(asked, kind, "gpt-5").members is asked


def test_chat_variants_keep_their_temperature() -> None:
    result = fitted(asking(max_tokens=9, temperature=0.2), "Open AI", "gpt-5-chat-latest")
    assert result == Adjusted(asking(max_completion_tokens=9, temperature=0.2))


@pytest.mark.parametrize(
    ("effort", "dropped"),
    [({}, ()), ({"reasoning_effort": "none"}, ()), ({"reasoning_effort": "low"}, ("temperature",))],
)
def test_sampling_goes_only_while_the_model_reasons(
    effort: dict[str, str], dropped: tuple[str, ...]
) -> None:
    assert fitted(asking(temperature=0.2, **effort), "Open AI", "gpt-5.2").dropped == dropped


@pytest.mark.parametrize(
    "model", ["claude-opus-4-7", "claude-opus-4-8-20260801", "claude-sonnet-5-5", "Claude-Haiku-5"]
)
def test_newer_claude_gets_no_sampling(model: str) -> None:
    result = fitted(asking(**SAMPLING), "Anthropic", model)
    assert result == Adjusted(asking(), ("temperature", "top_p", "top_k"))


@pytest.mark.parametrize("model", ["claude-opus-4-20250514", "claude-3-7-sonnet-20250219"])
def test_older_claude_keeps_sampling(model: str) -> None:
    asked = asking(**SAMPLING)
    assert fitted(asked, "Anthropic", model).members is asked


def test_claude_between_takes_one_of_two() -> None:
    both = fitted(asking(**SAMPLING), "Anthropic", "claude-sonnet-4-5-20250929")
    assert both.dropped == ("top_p",)
    alone = asking(top_p=0.5)
    assert fitted(alone, "Anthropic", "claude-sonnet-4-5-20250929").members is alone


def test_name_that_the_model_knows_wins() -> None:
    both = asking(max_tokens=5, max_completion_tokens=9)
    assert fitted(both, "Open AI", "o3").members == asking(max_completion_tokens=9)


REASONED = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
REFUSALS: dict[str, tuple[Failure, dict[str, Any], Change]] = {
    "renamed": (
        saying(REASONED, param="max_tokens", code="unsupported_parameter"),
        {"max_tokens": 9},
        Change(renames={"max_tokens": "max_completion_tokens"}),
    ),
    "unsupported": (
        saying(
            "Unsupported parameter: 'top_p' is not supported with this model.",
            param="top_p",
            code="unsupported_parameter",
        ),
        SAMPLING,
        Change(drops=("top_p",)),
    ),
    "code alone": (
        saying("No.", param="verbosity", code="unknown_parameter"),
        {"verbosity": "low"},
        Change(drops=("verbosity",)),
    ),
    "only the default": (
        saying(
            "Unsupported value: 'temperature' does not support 0.2 with this model. Only the "
            "default (1) value is supported.",
            param="temperature",
            code="unsupported_value",
        ),
        SAMPLING,
        Change(drops=("temperature",)),
    ),
    "unrecognized": (
        saying("Unrecognized request argument supplied: top_k"),
        SAMPLING,
        Change(drops=("top_k",)),
    ),
    "several unrecognized": (
        saying("Unrecognized request arguments supplied: top_k, min_p"),
        {**SAMPLING, "min_p": 0.1},
        Change(drops=("top_k", "min_p")),
    ),
    "anthropic extra": (
        saying("temperature: Extra inputs are not permitted"),
        SAMPLING,
        Change(drops=("temperature",)),
    ),
    "anthropic deprecated": (
        saying("`temperature` is deprecated for this model."),
        SAMPLING,
        Change(drops=("temperature",)),
    ),
    "anthropic both": (
        saying("`temperature` and `top_p` cannot both be specified for this model. Use only one."),
        SAMPLING,
        Change(drops=("top_p",), given="temperature"),
    ),
    "through an aggregator": (
        saying("Acme: `temperature` is deprecated for this model."),
        SAMPLING,
        Change(drops=("temperature",)),
    ),
    "mistral": (
        saying(
            "random_seed: Extra inputs are not permitted; user: Extra inputs are not permitted",
            status=422,
            param="random_seed",
        ),
        {"seed": 1, "user": "u"},
        Change(drops=("seed", "user")),
    ),
    "groq": (
        saying("property 'store' is unsupported, did you mean 'stop'?"),
        {"store": True, "stop": "x"},
        Change(drops=("store",)),
    ),
    "google": (
        saying(
            "Invalid JSON payload received. Unknown name \"topK\" at 'generation_config': Cannot "
            "find field."
        ),
        SAMPLING,
        Change(drops=("top_k",)),
    ),
    "vllm": (
        saying(
            "[{'type': 'extra_forbidden', 'loc': ('body', 'top_k'), 'msg': 'Extra inputs are not "
            "permitted', 'input': 5}]"
        ),
        SAMPLING,
        Change(drops=("top_k",)),
    ),
    "default that says nothing": (
        saying("Unknown parameter: 'tools'.", param="tools", code="unknown_parameter"),
        {"tools": []},
        Change(drops=("tools",)),
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_tuning_is_found(name: str) -> None:
    failure, members, change = REFUSALS[name]
    asked = asking(**members)
    parameters = Parameters()
    assert parameters.unwanted(failure, asked) == change
    parameters.learn(7, "m", change)
    learned = parameters.adjusted(asked, provider_id=7, ai_type_id="Custom", model="m")
    assert learned.members != asked
    assert parameters.unwanted(failure, learned.members) is None
    elsewhere = parameters.adjusted(asked, provider_id=8, ai_type_id="Custom", model="m")
    assert elsewhere.members is asked


@pytest.mark.parametrize(
    ("failure", "members"),
    [
        (saying("Unknown parameter: 'tools'.", param="tools", code="unknown_parameter"), {"tools": [1]}),
        (saying("Unrecognized request argument supplied: messages"), {}),
        (saying("Unrecognized request argument supplied: grammar"), {"grammar": "root ::= x"}),
        (saying("Unsupported parameter: 'stop' is not supported with this model."), {"stop": "x"}),
        (saying("max_tokens: Extra inputs are not permitted"), {"max_tokens": 5}),
        (saying("response_format: Extra inputs are not permitted"), {"response_format": {"type": "json_object"}}),
        (saying("Unknown parameter: 'metadata.user'.", param="metadata.user", code="unknown_parameter"), {"metadata": {}}),
        (saying("messages.0.user.seed: Extra inputs are not permitted"), {"seed": 1}),
        (saying("'messages.0' : for 'role:user' the following must be satisfied[('messages.0' : property 'user' is unsupported)]"), {"user": "u"}),
        (saying("Unsupported value: 'reasoning_effort' does not support 'hgih' with this model. Supported values are: 'low'.", param="reasoning_effort", code="unsupported_value"), {"reasoning_effort": "hgih"}),
        (saying("temperature must be at most 2", param="temperature", code="invalid_value"), SAMPLING),
        (saying("Unrecognized request argument supplied: top_k", status=500), SAMPLING),
        (saying("Unrecognized request argument supplied: top_k", status=429), SAMPLING),
        (saying("parallel_tool_calls is not supported with this model"), {"parallel_tool_calls": False}),
        (saying(""), SAMPLING),
    ],
)  # fmt: skip
def test_other_refusals_go_to_the_caller(failure: Failure, members: dict[str, Any]) -> None:
    assert Parameters().unwanted(failure, asking(**members)) is None


def test_what_was_learned_is_bounded() -> None:
    parameters = Parameters()
    asked = asking(top_k=1)

    def drops(id: int) -> bool:
        found = parameters.adjusted(asked, provider_id=id, ai_type_id="Custom", model="m")
        return found.dropped == ("top_k",)

    for id in range(MOST_LEARNED):
        parameters.learn(id, "m", Change(drops=("top_k",)))
    assert drops(0)
    parameters.learn(MOST_LEARNED, "m", Change(drops=("top_k",)))
    assert [drops(id) for id in (0, 1, 2, MOST_LEARNED)] == [True, False, True, True]


def test_learned_changes_add_up_until_forgotten() -> None:
    parameters = Parameters()
    for name in ("top_k", "top_p", "top_k"):
        parameters.learn(3, "m", Change(drops=(name,)))
    asked = asking(**SAMPLING)
    found = parameters.adjusted(asked, provider_id=3, ai_type_id="Custom", model="m")
    assert found.dropped == ("top_k", "top_p")
    parameters.forget(3)
    again = parameters.adjusted(asked, provider_id=3, ai_type_id="Custom", model="m")
    assert again.members is asked


WORDS = st.sampled_from([
    "temperature", "top_p", "max_tokens", "messages", "tools", "response_format", "model", "seed",
    "stop", "logit_bias", "reasoning_effort", "x",
])  # fmt: skip
VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(WORDS, VALUES),
    st.sampled_from(["o3", "gpt-5", "gpt-5.2", "gpt-4o", "claude-opus-5"]),
    st.sampled_from(["Open AI", "Anthropic", "Custom"]),
    st.lists(WORDS, max_size=3),
)
def test_what_a_request_says_is_never_touched(
    members: dict[str, Any], model: str, kind: str, refused_names: list[str]
) -> None:
    parameters = Parameters()
    failure = saying(f"Unrecognized request arguments supplied: {', '.join(refused_names)}")
    change = parameters.unwanted(failure, members)
    if change is not None:
        parameters.learn(1, model, change)
    before = repr(members)
    found = parameters.adjusted(members, provider_id=1, ai_type_id=kind, model=model)
    assert repr(members) == before
    for name in ("messages", "model", "x"):
        assert found.members.get(name) is members.get(name)
        assert name not in found.dropped
    for name, value in found.members.items():
        assert value is members.get(name, members.get("max_tokens"))
    if members.get("tools"):
        assert found.members["tools"] is members["tools"]


def test_ordinary_models_cost_next_to_nothing() -> None:
    parameters = Parameters()
    asked = asking(temperature=0.5)

    def took() -> float:
        began = time.perf_counter()
        for _ in range(1000):
            parameters.adjusted(asked, provider_id=1, ai_type_id="Custom", model="m")
        return (time.perf_counter() - began) / 1000

    assert min(took() for _ in range(5)) < 5e-6


@pytest.mark.parametrize(
    "message",
    [
        "Unrecognized request argument supplied: stream_options",
        'Bad request: json: unknown field "stream_options"',
        "unknown field: parameter 'stream_options' is not a valid field",
        "Additional properties are not allowed ('stream_options' was unexpected)",
        "stream_options: Extra inputs are not permitted",
        "body.stream_options.include_usage: Extra inputs are not permitted",
        "include_usage is not supported",
    ],
)
def test_refused_usage_is_given_up_where_we_asked_for_it(message: str) -> None:
    assert Parameters().unwanted(saying(message), asking(), usage_added=True) == Change(
        ("stream_options",)
    )
    assert Parameters().unwanted(saying(message), asking()) is None


def test_parameter_that_names_the_usage_is_enough() -> None:
    failure = saying("no", param="stream_options.include_usage")
    assert Parameters().unwanted(failure, asking(), usage_added=True) is not None


@pytest.mark.parametrize(
    "failure",
    [
        saying("messages is required"),
        saying("stream_options is not supported", status=500),
        saying("{'stream': True, 'stream_options': {'include_usage': True}}: not permitted"),
        saying("Invalid input: {'x': 1, 'stream_options': {}}"),
        saying("unsupported_stream_options_everywhere"),
    ],
)
def test_other_refusals_keep_the_usage(failure: Failure) -> None:
    assert Parameters().unwanted(failure, asking(), usage_added=True) is None


def test_learned_usage_is_asked_for_no_more() -> None:
    learning = Parameters()
    which: Any = {"provider_id": 1, "ai_type_id": "Custom", "model": "m"}
    assert learning.adjusted(asking(), **which).asks_usage
    learning.learn(1, "m", Change(("stream_options",)))
    assert not learning.none_for(provider(1, "m"), "m")
    fitting = learning.adjusted(asking(stream_options={"include_usage": True}), **which)
    assert fitting == Adjusted(asking(), ("stream_options",), asks_usage=False)


def test_changed_and_gone_providers_are_forgotten() -> None:
    learning = Parameters()
    same, changed, gone = provider(1, "m"), provider(2, "m"), provider(3, "m")
    learning.providers_changed([same, changed, gone])
    for number in (1, 2, 3):
        learning.learn(number, "m", Change(("seed",)))
    renewed = msgspec.structs.replace(changed, priority=5)
    learning.providers_changed([msgspec.structs.replace(same), renewed])
    known = [not learning.none_for(each, "m") for each in (same, changed, gone)]
    assert known == [True, False, False]

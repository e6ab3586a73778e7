"""What Anthropic's models take, as a table, and how each of them is asked to think."""

from typing import Any, cast

import msgspec

from aiserver.chat.adapters.anthropic_messages import Json
from aiserver.contract.errors import InvalidRequest

_LADDER = ("minimal", "low", "medium", "high", "xhigh", "max")
# The part of `max_tokens` that may go into thinking, where a budget must be named.
_SHARES = {"minimal": 0.1, "low": 0.2, "medium": 0.5, "high": 0.8, "xhigh": 0.9, "max": 0.95}
_LEAST_BUDGET = 1024
_LEAST_TOP_P = 0.95
# Newer models show nothing of their thoughts unless asked to.
_ADAPTIVE: Json = {"type": "adaptive", "display": "summarized"}


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """How models whose name holds one of `names` are asked to think, and how long they may answer.

    `efforts` they know; `budget`: tokens for thinking must be named. `idle`: they think only when
    told so; `ceaseless`: they cannot be told not to. `max_tokens`: for callers who give none.
    """

    names: tuple[str, ...]
    efforts: tuple[str, ...] = ()
    budget: bool = False
    idle: bool = False
    ceaseless: bool = False
    max_tokens: int = 32_000


# The first that fits; an unknown Claude is taken for a newer one.
FAMILIES: tuple[Family, ...] = (
    Family(names=("claude-3",), budget=True, idle=True, max_tokens=4_096),
    Family(
        names=("opus-4-0", "opus-4-2025", "sonnet-4-0", "sonnet-4-2025"),
        budget=True,
        idle=True,
    ),
    Family(names=("opus-4-1", "sonnet-4-5", "haiku-4-5"), budget=True, idle=True),
    Family(names=("opus-4-5",), efforts=("low", "medium", "high"), budget=True, idle=True),
    Family(
        names=("opus-4-6", "sonnet-4-6"),
        efforts=("low", "medium", "high", "max"),
        idle=True,
    ),
    Family(names=("opus-4-7", "opus-4-8"), efforts=_LADDER[1:], idle=True),
    Family(names=("fable", "mythos", "-5-5"), efforts=_LADDER[1:], ceaseless=True),
    Family(names=("opus-5", "sonnet-5", "haiku-5"), efforts=_LADDER[1:]),
    Family(names=("claude",), efforts=_LADDER[1:], ceaseless=True),
    Family(names=("",), budget=True, max_tokens=8_192),
)


def family_of(model: str) -> Family:
    name = model.lower().replace(".", "-")
    return next(family for family in FAMILIES if any(part in name for part in family.names))


def think(body: Json, effort: Any, family: Family) -> None:
    """Asks for as much thought as the caller wants. Raises InvalidRequest for an unknown effort."""
    if effort is None:
        return
    if effort == "none":
        _rest(body, family)
        return
    if effort not in _LADDER:
        raise InvalidRequest(
            f"reasoning_effort must be none, {', '.join(_LADDER[:-1])} or max.",
            param="reasoning_effort",
        )
    if family.efforts:
        configure(body, effort=_reachable(effort, family))
    thinking = _budgeted(body, effort) if family.budget else _ADAPTIVE
    # A forced call leaves no room for a thought.
    if thinking is None or body.get("tool_choice", {}).get("type") in ("any", "tool"):
        return
    body.setdefault("thinking", thinking)
    # While thinking no temperature but 1 is taken; OpenAI's own models refuse the pair alike.
    body.pop("temperature", None)
    top_p = body.get("top_p")
    if isinstance(top_p, (int, float)) and top_p < _LEAST_TOP_P:
        del body["top_p"]


def _rest(body: Json, family: Family) -> None:
    """As little thought as the family can do with."""
    if family.ceaseless:
        configure(body, effort=family.efforts[0])
    elif not family.idle:
        body.setdefault("thinking", {"type": "disabled"})


def _budgeted(body: Json, effort: str) -> Json | None:
    """None where there is no room for a thought, or where the turn under way began without one."""
    budget = max(_LEAST_BUDGET, int(body["max_tokens"] * _SHARES[effort]))
    if budget >= body["max_tokens"] or _thoughtless(body["messages"]):
        return None
    return {"type": "enabled", "budget_tokens": budget}


def _thoughtless(turns: list[Json]) -> bool:
    if len(turns) < 2 or turns[-1]["content"][0]["type"] != "tool_result":
        return False
    return turns[-2]["content"][0]["type"] not in ("thinking", "redacted_thinking")


def _reachable(effort: str, family: Family) -> str:
    """The highest effort known to the family that is not above the one asked for."""
    below = _LADDER[: _LADDER.index(effort) + 1]
    return next((known for known in reversed(family.efforts) if known in below), family.efforts[0])


def configure(body: Json, **members: Any) -> None:
    """What the caller says in Anthropic's own words goes before."""
    given: Any = body.get("output_config")
    body["output_config"] = {**members, **(cast("Json", given) if isinstance(given, dict) else {})}

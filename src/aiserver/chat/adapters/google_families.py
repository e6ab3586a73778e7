"""How families of Gemini models differ, as rows of data."""

import re
from typing import Any

import msgspec


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """`efforts` is what each reasoning effort becomes in `thinkingConfig`; none where it cannot.

    `signed`: the model refuses function calls in a conversation that lack their signature.
    """

    pattern: re.Pattern[str]
    efforts: dict[str, dict[str, Any]]
    signed: bool = False


EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


def _by(name: str, *values: object) -> dict[str, dict[str, Any]]:
    return {effort: {name: value} for effort, value in zip(EFFORTS, values, strict=True)}


# The first row that matches a name counts; names that say no version are of the newest models.
# Budgets and levels are those of Google's own OpenAI-compatible endpoint.
FAMILIES = (
    Family(pattern=re.compile(r"gemini-(1|2\.0)|gemma|learnlm"), efforts={}),
    Family(
        pattern=re.compile(r"gemini-2\.5-pro"),
        efforts=_by("thinkingBudget", 128, 1024, 1024, 8192, 24576, 32768, 32768),
    ),
    Family(
        pattern=re.compile(r"gemini-2\.5"),
        efforts=_by("thinkingBudget", 0, 1024, 1024, 8192, 24576, 24576, 24576),
    ),
    Family(
        pattern=re.compile(r"gemini-3-pro"),
        efforts=_by("thinkingLevel", "LOW", "LOW", "LOW", "HIGH", "HIGH", "HIGH", "HIGH"),
        signed=True,
    ),
    Family(
        pattern=re.compile(r"gemini-[\d.]+-pro|gemini-pro"),
        efforts=_by("thinkingLevel", "LOW", "LOW", "LOW", "MEDIUM", "HIGH", "HIGH", "HIGH"),
        signed=True,
    ),
    Family(
        pattern=re.compile(""),
        efforts=_by("thinkingLevel", "MINIMAL", "MINIMAL", "LOW", "MEDIUM", "HIGH", "HIGH", "HIGH"),
        signed=True,
    ),
)


def family_of(model: str) -> Family:
    """The last row matches every name."""
    return next(family for family in FAMILIES if family.pattern.match(model))

"""Parameters that one model takes and another refuses: known ones by data, others by experience."""

import re
from collections import OrderedDict
from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from aiserver.chat.failures import Failure
from aiserver.providers.store import Provider

# Models of providers of which something was learned; the one not asked for longest goes first.
MOST_LEARNED = 1000
_TELLING = frozenset({400, 422})
# Only whole members: of `metadata.x` nothing can be left out.
_NAME = r"[`'\"]?(\w+)(?![\w.\[])[`'\"]?"
_START = r"(?:^|; |\w: )"
# How upstreams say that they do not take a parameter; group 1 holds its name, or several.
_UNWANTED = tuple(
    re.compile(pattern)
    for pattern in (
        rf"Unsupported parameter: {_NAME}",
        rf"Unknown parameter: {_NAME}",
        r"Unrecognized request arguments? supplied: (\w+(?:, \w+)*)",
        r"Unsupported value: '(\w+)' does not support .* Only the default",
        r"Unknown name \"(\w+)\"",
        rf"{_START}(?:body\.)?(\w+): Extra inputs are not permitted",
        r"'loc': \('body', '(\w+)'\), 'msg': 'Extra inputs are not permitted",
        rf"{_START}property '(\w+)' is unsupported",
        rf"(?<![\w.]){_NAME} is (?:deprecated|(?:not |un)supported) (?:for|with|by) this model",
        r"`\w+` and `(\w+)` cannot both be specified",
    )
)
_BOTH = re.compile(r"`(\w+)` and `(\w+)` cannot both be specified")
_INSTEAD = re.compile(r"[Uu]se [`'\"](\w+)[`'\"] instead")
# A stream's usage is asked for by the gateway itself; whoever says no to it is not asked again.
_USAGE = r"(?:stream_options|include_usage)"
_NO = (
    r"(?:unknown|unrecogni[sz]ed|unexpected|unsupported|invalid|extra"
    r"|not (?:\w+ ){0,2}(?:permitted|allowed|supported|accepted|valid))"
)
# Not across braces: there an upstream only repeats what it was sent.
_NO_USAGE = re.compile(
    rf"\b{_NO}\b[^{{}}]{{0,60}}?\b{_USAGE}\b|\b{_USAGE}\b[^{{}}]{{0,60}}?\b{_NO}\b", re.IGNORECASE
)
_HUMPS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_STREAM_OPTIONS = "stream_options"
_PARAMETER_CODES = frozenset({"unsupported_parameter", "unknown_parameter"})


class Change(msgspec.Struct, frozen=True):
    """What a model's requests go without; `given`: only while that member is there, too."""

    drops: tuple[str, ...] = ()
    renames: dict[str, str] = {}
    given: str | None = None
    unless: tuple[str, ...] = ()

    def applies(self, members: dict[str, Any]) -> bool:
        if self.given is None:
            return True
        value = members.get(self.given)
        return value is not None and value not in self.unless


class Adjusted(msgspec.Struct, frozen=True):
    """`dropped` names what the caller asked for and this model will not hear of.

    `asks_usage`: its streams may be asked for their usage.
    """

    members: dict[str, Any]
    dropped: tuple[str, ...] = ()
    asks_usage: bool = True


class _Rule(Change, frozen=True, kw_only=True, rename={"except_": "except"}):
    """A change for the models of some kinds of provider, by patterns on their names."""

    types: frozenset[str]
    models: tuple[str, ...]
    except_: tuple[str, ...] = ()

    def covers(self, ai_type_id: str, model: str) -> bool:
        return (
            ai_type_id in self.types
            and any(fnmatchcase(model, pattern) for pattern in self.models)
            and not any(fnmatchcase(model, pattern) for pattern in self.except_)
        )


class _Data(msgspec.Struct, forbid_unknown_fields=True):
    """`droppable`: with any value, or with one of these; `renameable`: to one of these."""

    rules: tuple[_Rule, ...]
    droppable: dict[str, list[Any] | None]
    renameable: dict[str, list[str]]
    aliases: dict[str, str]


_SHIPPED = Path(__file__).with_name("data") / "parameters.json"
_DATA = msgspec.json.decode(_SHIPPED.read_bytes(), type=_Data)


@lru_cache(maxsize=MOST_LEARNED)
def _shipped(ai_type_id: str, model: str) -> tuple[Change, ...]:
    name = model.casefold()
    return tuple(rule for rule in _DATA.rules if rule.covers(ai_type_id, name))


class Parameters:
    """What each model does not take: the shipped rules and what upstreams said since the start."""

    def __init__(self) -> None:
        self._learned: OrderedDict[tuple[int, str], tuple[Change, ...]] = OrderedDict()
        self._rows: dict[int, Provider] = {}

    def adjusted(
        self, members: dict[str, Any], *, provider_id: int, ai_type_id: str, model: str
    ) -> Adjusted:
        """`members` without what this model refuses; the same dict when that is nothing."""
        changes = _shipped(ai_type_id, model)
        key = (provider_id, model)
        if key in self._learned:
            self._learned.move_to_end(key)
            changes += self._learned[key]
        fitted, dropped, asks_usage = members, (), True
        for change in changes:
            asks_usage = asks_usage and _STREAM_OPTIONS not in change.drops
            if change.applies(members):
                fitted, more = _changed(fitted, change)
                dropped += more
        return Adjusted(fitted, dropped, asks_usage)

    def none_for(self, provider: Provider, model: str) -> bool:
        """Whether `adjusted` never changes anything for that provider's model, so far."""
        return not (
            _shipped(provider.ai_type_id, model)
            or (self._learned and (provider.id, model) in self._learned)
        )

    def unwanted(
        self, failure: Failure, members: dict[str, Any], *, usage_added: bool = False
    ) -> Change | None:
        """What to leave out or rename after a refusal; None where that is not the upstream's point.

        Only optional tuning goes: without its messages, tools or bounds a request is another one.
        `usage_added`: the gateway itself asked for the stream's usage.
        """
        if failure.status not in _TELLING:
            return None
        drops: list[str] = []
        if usage_added and _refuses_usage(failure):
            drops.append(_STREAM_OPTIONS)
        renames: dict[str, str] = {}
        for named in _named(failure):
            name = _member(named, members)
            if name is None or name in drops or name in renames:
                continue
            target = _target(name, failure.detail, members)
            if target is not None:
                renames[name] = target
            elif _may_go(name, members[name]):
                drops.append(name)
        if not drops and not renames:
            return None
        return Change(tuple(drops), renames, given=_given(failure.detail, drops))

    def learn(self, provider_id: int, model: str, change: Change) -> None:
        """From here on `adjusted` makes this change for that provider's model."""
        key = (provider_id, model)
        known = self._learned.get(key, ())
        if change not in known:
            self._learned[key] = (*known, change)
        self._learned.move_to_end(key)
        if len(self._learned) > MOST_LEARNED:
            self._learned.popitem(last=False)

    def providers_changed(self, providers: Iterable[Provider]) -> None:
        """Forgets what was learned of those that went or are others now."""
        rows = {provider.id: provider for provider in providers}
        for id, row in self._rows.items():
            if rows.get(id) != row:
                self.forget(id)
        self._rows = rows

    def forget(self, provider_id: int) -> None:
        """For a provider that now is another one."""
        for key in [key for key in self._learned if key[0] == provider_id]:
            del self._learned[key]


def _changed(members: dict[str, Any], change: Change) -> tuple[dict[str, Any], tuple[str, ...]]:
    dropped = tuple(name for name in change.drops if name in members)
    renamed = {old: new for old, new in change.renames.items() if old in members}
    if not dropped and not renamed:
        return members, ()
    fitted: dict[str, Any] = {}
    for name, value in members.items():
        target = renamed.get(name, name)
        # A caller that sent both spellings meant the one that this model knows.
        if name not in dropped and (target == name or members.get(target) is None):
            fitted[target] = value
    return fitted, tuple(name for name in dropped if members[name] is not None)


def _refuses_usage(failure: Failure) -> bool:
    named = (failure.parameter or "").split(".")
    return named[0] == _STREAM_OPTIONS or _NO_USAGE.search(failure.detail) is not None


def _named(failure: Failure) -> list[str]:
    """Names of parameters, as the upstream spells them, that it says it does not take."""
    found = [
        name
        for pattern in _UNWANTED
        for names in pattern.findall(failure.detail)
        for name in names.split(", ")
    ]
    if failure.parameter and failure.error.error_reason in _PARAMETER_CODES:
        found.append(failure.parameter)
    return found


def _member(named: str, members: dict[str, Any]) -> str | None:
    """The caller's member behind the upstream's name for it: topK is top_k."""
    name = _HUMPS.sub("_", named).lower()
    for each in (named, name, _DATA.aliases.get(name, name)):
        if each in members:
            return each
    return None


def _target(name: str, message: str, members: dict[str, Any]) -> str | None:
    instead = _INSTEAD.search(message)
    if instead is None or instead[1] not in _DATA.renameable.get(name, ()):
        return None
    return instead[1] if members.get(name) is not None else None


def _may_go(name: str, value: Any) -> bool:
    if name not in _DATA.droppable:
        return False
    values = _DATA.droppable[name]
    return values is None or value is None or value in values


def _given(message: str, drops: list[str]) -> str | None:
    both = _BOTH.search(message)
    return both[1] if both is not None and drops == [both[2]] else None

"""Compares our operations with the facts of the wire contract, member by member.

What counts as the same, wherever it stands:
- A member of ours typed `Any` fits everything: chat passes such members on as they were sent. So
  does whatever the contract leaves open (`any`) or sends as a file part.
- A member that the contract requires may be optional with us, never the other way round.
- Who may leave out a member of an answer is not compared: null members are left out anyway.
- `responseStatus` stands in error bodies, which one place writes; an answer need not declare it.
- Every operation answers at /api/{Name} besides its routes; names of path variables may differ.
- An administrator's secret and a key with scope Admin open the same operations (decision 0006).
- Keys of a map are text in JSON, so only its values are compared. `number` without a size is what
  JavaScript has, whole or not.
"""

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec
from msgspec import inspect

from aiserver.contract.operation import Content, Operation

WIRE = Path(__file__).parent / "fixtures" / "wire"
BEYOND = "beyond the contract"

_LEAVES = {
    "base64": "string",
    "int32": "integer",
    "int64": "integer",
    "float": "number",
    "double": "number",
    "decimal": "number",
    "number": "integer | number",
    "file": "any",
}
_OURS: dict[type[inspect.Type], str] = {
    inspect.AnyType: "any",
    inspect.RawType: "any",
    inspect.StrType: "string",
    inspect.UUIDType: "string",
    inspect.BytesType: "string",
    inspect.DecimalType: "string",
    inspect.BoolType: "boolean",
    inspect.IntType: "integer",
    inspect.FloatType: "number",
    inspect.DateTimeType: "date-time",
    inspect.TimeDeltaType: "duration",
}
_GENERIC = re.compile(r"(\w+)<(.+)>")
_PLACEHOLDERS = ("T", "TKey", "TValue")
_VARIABLE = re.compile(r"\{\w+(\*?)\}")
_ACCESS = {"secret": "admin"}
# The catalogue is open unless its operator closes it.
_OUR_ACCESS = {"catalogue": "open"}


class WireOperation(msgspec.Struct, rename="camel", kw_only=True):
    """`client_response` is how the published client names the answer, where that differs."""

    verbs: list[str]
    auth: str
    tag: str | None = None
    routes: dict[str, list[str]] = {}
    fields: dict[str, str] = {}
    required: list[str] = []
    response: str | None = None
    client_response: str | None = None


class WireType(msgspec.Struct, rename="camel", kw_only=True):
    kind: str
    fields: dict[str, str] = {}
    members: list[tuple[str, int | None, str | int]] = []


class Contract(NamedTuple):
    operations: Mapping[str, WireOperation]
    types: Mapping[str, WireType]


class Difference(NamedTuple):
    """`on` is an operation or a type; `member` is empty for the operation itself."""

    on: str
    member: str
    what: str

    def __str__(self) -> str:
        return f"{self.on}{'.' if self.member else ''}{self.member}: {self.what}"


class Shape(NamedTuple):
    """A type as JSON has it; `declared` is where ours says more."""

    family: str
    name: str = ""
    inner: tuple["Shape", ...] = ()
    declared: inspect.Type | None = None

    def __str__(self) -> str:
        if self.family == "union":
            return " | ".join(str(each) for each in self.inner)
        parts = f"<{','.join(str(each) for each in self.inner)}>" if self.inner else ""
        return (self.name or self.family) + parts


def read_contract(folder: Path = WIRE) -> Contract:
    return Contract(
        msgspec.json.decode(
            (folder / "operations.json").read_bytes(), type=dict[str, WireOperation]
        ),
        msgspec.json.decode((folder / "types.json").read_bytes(), type=dict[str, WireType]),
    )


def read_listed(text: str) -> dict[Difference, str]:
    """The reason of each listed difference; an entry may name several `on` and `member`."""
    listed: dict[Difference, str] = {}
    for entry in tomllib.loads(text).get("difference", []):
        reason = entry["reason"]
        if not re.fullmatch(r"[A-Z].{15,}\.", reason):
            raise ValueError(f"The reason of {entry['on']} is no sentence: {reason!r}")
        for on, member in product(_several(entry["on"]), _several(entry.get("member", ""))):
            difference = Difference(on, member, entry["what"])
            if difference in listed:
                raise ValueError(f"Listed twice: {difference}")
            listed[difference] = reason
    return listed


def complaints(found: set[Difference], listed: Mapping[Difference, str]) -> list[str]:
    """What to mend or to list, and what to list no longer."""
    new = [
        f"{each}\n  Mend the operation or type; only where it is meant to differ, add to"
        f" tests/fixtures/wire/differences.toml:\n{_entry(each)}"
        for each in sorted(found - listed.keys())
    ]
    gone = [
        f"{each}\n  This is no longer so: remove it from tests/fixtures/wire/differences.toml."
        for each in sorted(listed.keys() - found)
    ]
    return new + gone


def compare(operations: Iterable[Operation], contract: Contract) -> set[Difference]:
    """Every difference of operations that are there; those that are missing are not looked at."""
    return _Comparison(contract).of(operations)


class _Comparison:
    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._found: set[Difference] = set()
        self._seen: set[tuple[str, Any]] = set()

    def of(self, operations: Iterable[Operation]) -> set[Difference]:
        for ours in operations:
            wire = self._contract.operations.get(ours.name)
            if wire is None:
                self._add(ours.name, "", BEYOND)
            else:
                self._operation(ours, wire)
        return self._found

    def _add(self, on: str, member: str, what: str) -> None:
        self._found.add(Difference(on, member, what))

    def _operation(self, ours: Operation, wire: WireOperation) -> None:
        access = _ACCESS.get(wire.auth, wire.auth)
        if set(ours.verbs) != set(wire.verbs):
            self._add(ours.name, "", f"verbs are {_and(ours.verbs)}, not {_and(wire.verbs)}")
        if _OUR_ACCESS.get(ours.access.value, ours.access.value) != access:
            self._add(ours.name, "", f"access is {ours.access.value}, not {access}")
        if wire.tag is not None and ours.tag != wire.tag:
            self._add(ours.name, "", f"tag is {ours.tag}, not {wire.tag}")
        self._routes(ours, wire)
        self._members(ours.name, wire.fields, _fields(ours.request), required=wire.required)
        self._answer(ours, wire)

    def _routes(self, ours: Operation, wire: WireOperation) -> None:
        own = f"/api/{ours.name}"
        theirs = {_path(path): (path, v) for path, v in wire.routes.items() if path != own}
        for route in ours.routes:
            _, verbs = theirs.pop(_path(route.path), (None, None))
            if verbs is None:
                self._add(ours.name, "", f"route {route.path} is extra")
            elif set(verbs) != set(route.verbs):
                what = f"verbs of {route.path} are {_and(route.verbs)}, not {_and(verbs)}"
                self._add(ours.name, "", what)
        for path, _ in theirs.values():
            self._add(ours.name, "", f"route {path} is missing")

    def _answer(self, ours: Operation, wire: WireOperation) -> None:
        theirs = [parsed(text) for text in (wire.response, wire.client_response) if text]
        objects = [shape for shape in theirs if shape.family == "struct"]
        if ours.returns is None:
            if objects:
                self._add(ours.name, "", f"answers nothing, not {objects[0]}")
            return
        if ours.returns is Content and [str(shape) for shape in theirs] == ["bytes"]:
            return
        answer = shape_of(inspect.type_info(ours.returns))
        meant = next((shape for shape in objects if _fits(shape, answer)), None)
        if meant is None:
            wanted = str(theirs[0]) if theirs else "nothing"
            self._add(ours.name, "", f"answers {answer}, not {wanted}")
        for shape in [meant] if meant is not None else objects[:1]:
            self._below(shape, answer)

    def _members(
        self,
        on: str,
        wire: Mapping[str, str],
        ours: Iterable[inspect.Field],
        *,
        required: Iterable[str] | None = None,
        given: Mapping[str, Shape] | None = None,
    ) -> None:
        """`required` for a request; `given` are the types that stand for T."""
        missing = {name for name, text in wire.items() if text != "file"} - {"responseStatus"}
        for field in ours:
            name = field.encode_name
            missing.discard(name)
            if name not in wire:
                self._add(on, name, "extra")
                continue
            theirs, shape = parsed(wire[name], given or {}), shape_of(field.type)
            if not _fits(theirs, shape):
                self._add(on, name, f"is {shape}, not {theirs}")
            if required is not None and field.required and name not in required:
                self._add(on, name, "required")
            self._below(theirs, shape)
        for name in missing:
            self._add(on, name, "missing")

    def _below(self, theirs: Shape, ours: Shape) -> None:
        """Compares the types that both sides name, once for each couple."""
        for wire, shape in _couples(theirs, ours):
            kind = self._contract.types.get(wire.name)
            declared = shape.declared
            if kind is None or (str(wire), str(shape)) in self._seen:
                continue
            self._seen.add((str(wire), str(shape)))
            if isinstance(declared, inspect.StructType):
                given = dict(zip(_placeholders(kind), wire.inner, strict=False))
                self._members(wire.name, kind.fields, declared.fields, given=given)
            elif isinstance(declared, inspect.EnumType | inspect.LiteralType):
                self._values(wire.name, kind, _values(declared))

    def _values(self, on: str, wire: WireType, ours: set[Any]) -> None:
        theirs = {value for _, _, value in wire.members}
        for value in ours - theirs:
            self._add(on, str(value), "extra")
        for value in theirs - ours:
            self._add(on, str(value), "missing")


def parsed(text: str, given: Mapping[str, Shape] | None = None) -> Shape:
    """The shape that the contract's spelling of a type means."""
    found = _GENERIC.fullmatch(text)
    if found is not None:
        name, inner = found[1], tuple(parsed(part, given) for part in _parts(found[2]))
        if name in ("list", "map"):
            return Shape(name, inner=inner[-1:])
        return Shape("struct", name, inner)
    if given and text in given:
        return given[text]
    if text.startswith("enum "):
        return Shape("enum", text.removeprefix("enum "))
    if text[0].isupper():
        return Shape("struct", text)
    families = _LEAVES.get(text, text).split(" | ")
    if len(families) > 1:
        return Shape("union", inner=tuple(Shape(family) for family in families))
    return Shape(families[0])


def shape_of(info: inspect.Type) -> Shape:
    """The shape of a type of ours, whether it may be left out or not."""
    match info:
        case inspect.Metadata(type=inner):
            return shape_of(inner)
        case inspect.UnionType(types=types):
            some = tuple(shape_of(t) for t in types if not isinstance(t, inspect.NoneType))
            return some[0] if len(some) == 1 else Shape("union", inner=some)
        case inspect.DictType(value_type=value):
            return Shape("map", inner=(shape_of(value),))
        case (
            inspect.ListType(item_type=item)
            | inspect.VarTupleType(item_type=item)
            | inspect.SetType(item_type=item)
            | inspect.FrozenSetType(item_type=item)
        ):
            return Shape("list", inner=(shape_of(item),))
        case inspect.StructType(cls=kind):
            arguments = cast("tuple[Any, ...]", getattr(kind, "__args__", ()))
            inner = tuple(shape_of(inspect.type_info(each)) for each in arguments)
            return Shape("struct", kind.__name__, inner, info)
        case inspect.EnumType(cls=kind):
            return Shape("enum", kind.__name__, declared=info)
        case inspect.LiteralType():
            return Shape("enum", declared=info)
        case _:
            return Shape(_OURS.get(type(info), type(info).__name__))


def _fits(theirs: Shape, ours: Shape) -> bool:
    if "any" in (theirs.family, ours.family):
        return True
    if "union" in (theirs.family, ours.family):
        return any(_fits(one, two) for one, two in product(_either(theirs), _either(ours)))
    if theirs.family != ours.family or theirs.name != (ours.name or theirs.name):
        return False
    return all(map(_fits, theirs.inner, ours.inner))


def _couples(theirs: Shape, ours: Shape) -> Iterator[tuple[Shape, Shape]]:
    """Structs and enums that stand at the same place on both sides."""
    if "union" in (theirs.family, ours.family):
        for one, two in product(_either(theirs), _either(ours)):
            yield from _couples(one, two)
    elif theirs.family == ours.family:
        if ours.family in ("struct", "enum"):
            yield theirs, ours
        else:
            for one, two in zip(theirs.inner, ours.inner, strict=True):
                yield from _couples(one, two)


def _either(shape: Shape) -> tuple[Shape, ...]:
    return shape.inner if shape.family == "union" else (shape,)


def _fields(kind: type[msgspec.Struct]) -> tuple[inspect.Field, ...]:
    return cast(inspect.StructType, inspect.type_info(kind)).fields


def _values(declared: inspect.EnumType | inspect.LiteralType) -> set[Any]:
    if isinstance(declared, inspect.EnumType):
        return {member.value for member in declared.cls}
    return set(declared.values)


def _placeholders(kind: WireType) -> list[str]:
    text = " ".join(kind.fields.values())
    return [name for name in _PLACEHOLDERS if re.search(rf"\b{name}\b", text)]


def _parts(text: str) -> list[str]:
    """`string,list<A,B>` at its outer commas."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "<") - (letter == ">")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _path(path: str) -> str:
    return _VARIABLE.sub(r"{\1}", path)


def _and(verbs: Iterable[str]) -> str:
    return " and ".join(sorted(verbs))


def _several(value: str | list[str]) -> list[str]:
    return value if isinstance(value, list) else [value]


def _entry(difference: Difference) -> str:
    member = f'member = "{difference.member}"\n' if difference.member else ""
    return (
        f'[[difference]]\non = "{difference.on}"\n{member}what = "{difference.what}"\n'
        'reason = "Why, in one sentence."\n'
    )

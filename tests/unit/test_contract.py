"""The comparison with the wire contract finds what is missing, extra or differing."""

from collections.abc import Callable
from datetime import datetime
from enum import Enum, IntEnum
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
import pytest

from aiserver.contract.operation import (
    GET,
    POST,
    Access,
    Operation,
    Route,
    operation,
    operation_of,
)
from aiserver.contract.responses import Wire
from contract import (
    Contract,
    Difference,
    WireOperation,
    WireType,
    compare,
    complaints,
    parsed,
    read_contract,
    read_listed,
    shape_of,
)

T = TypeVar("T")


class Colour(Enum):
    RED = "red"
    GREEN = "green"


class Size(IntEnum):
    SMALL = 1


class Wheel(Wire, kw_only=True):
    colour: Colour
    size: Size | None = None
    spokes: int = 0


class Page(Wire, Generic[T], kw_only=True):
    results: list[T]


class Bicycle(Wire, kw_only=True):
    wheels: list[Wheel]
    made: datetime
    extras: dict[str, int] | None = None


CONTRACT = Contract(
    operations={
        "GetThing": WireOperation(
            verbs=["GET"],
            auth="key",
            tag="Things",
            routes={"/api/GetThing": ["GET"], "/things/{Id}": ["GET"]},
            fields={"id": "int32", "maxSpeed": "double", "photo": "file"},
            required=["id"],
            response="Bicycle",
        )
    },
    types={
        "Bicycle": WireType(
            kind="class",
            fields={
                "wheels": "list<Wheel>",
                "made": "date-time",
                "extras": "map<int32,int64>",
                "responseStatus": "ResponseStatus",
            },
        ),
        "Wheel": WireType(
            kind="class",
            fields={"colour": "enum Colour", "size": "enum Size", "spokes": "integer"},
        ),
        "Colour": WireType(kind="enum", members=[("Red", 0, "red"), ("Green", 1, "green")]),
        "Size": WireType(kind="enum", members=[("Small", 1, 1)]),
        "Page": WireType(kind="class", fields={"results": "list<T>"}),
    },
)


class Members(Wire, kw_only=True):
    """Gets a thing."""

    id: int
    max_speed: float | None = None


def thing(
    members: type[msgspec.Struct] = Members,
    *,
    name: str = "GetThing",
    tag: str = "Things",
    verbs: tuple[str, ...] = GET,
    access: Access = Access.KEY,
    returns: type[msgspec.Struct] | None = Bicycle,
    routes: tuple[Route, ...] = (Route("/things/{number}", GET),),
) -> Operation:
    made = type(name, (members,), {"__doc__": "Gets a thing.", "__module__": __name__})
    declare = operation(tag=tag, verbs=verbs, access=access, returns=returns, routes=routes)
    return operation_of(declare(made))


def found(*operations: Operation, contract: Contract = CONTRACT) -> set[str]:
    return {str(each) for each in compare(operations, contract)}


def type_of(**fields: str) -> Contract:
    """The contract with a bicycle that has these members."""
    return CONTRACT._replace(
        types={**CONTRACT.types, "Bicycle": WireType(kind="class", fields=fields)}
    )


def test_same_operation_has_no_differences() -> None:
    assert found(thing()) == set()


def test_missing_operation_is_not_a_difference() -> None:
    assert found() == set()


def test_extra_operation_is_beyond_the_contract() -> None:
    assert found(thing(name="GetOther")) == {"GetOther: beyond the contract"}


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        (lambda: thing(verbs=POST), "GetThing: verbs are POST, not GET"),
        (lambda: thing(access=Access.OPEN), "GetThing: access is open, not key"),
        (lambda: thing(tag="Other"), "GetThing: tag is Other, not Things"),
        (lambda: thing(routes=()), "GetThing: route /things/{Id} is missing"),
        (
            lambda: thing(routes=(Route("/things/{Id}", GET), Route("/more", GET))),
            "GetThing: route /more is extra",
        ),
        (
            lambda: thing(routes=(Route("/things/{Id}", POST),)),
            "GetThing: verbs of /things/{Id} are POST, not GET",
        ),
        (lambda: thing(returns=None), "GetThing: answers nothing, not Bicycle"),
    ],
)
def test_declaration_that_differs_is_found(ours: Callable[[], Operation], expected: str) -> None:
    assert found(ours()) == {expected}


def test_answer_of_another_type_is_found() -> None:
    differences = found(thing(returns=Wheel))
    assert "GetThing: answers Wheel, not Bicycle" in differences
    assert "Bicycle.wheels: missing" in differences


def test_request_members_are_compared() -> None:
    class Wrong(Wire, kw_only=True):
        id: str
        maxspeed: float
        photo: Any = None

    assert found(thing(Wrong)) == {
        "GetThing.id: is string, not integer",
        "GetThing.maxSpeed: missing",
        "GetThing.maxspeed: extra",
    }


def test_member_may_be_laxer_but_not_stricter() -> None:
    class Strict(Wire, kw_only=True):
        id: int | None = None
        max_speed: float

    assert found(thing(Strict)) == {"GetThing.maxSpeed: required"}


def test_secret_and_admin_are_one_access() -> None:
    for auth in ("secret", "admin"):
        wire = msgspec.structs.replace(CONTRACT.operations["GetThing"], auth=auth)
        contract = CONTRACT._replace(operations={"GetThing": wire})
        assert found(thing(access=Access.ADMIN), contract=contract) == set()


def test_answer_may_have_the_name_that_clients_use() -> None:
    wire = msgspec.structs.replace(
        CONTRACT.operations["GetThing"], response="Old", client_response="Bicycle"
    )
    assert found(thing(), contract=CONTRACT._replace(operations={"GetThing": wire})) == set()


def test_members_of_an_answer_are_compared() -> None:
    contract = type_of(wheels="list<Wheel>", made="string", extras="map<string,int64>", bell="any")
    assert found(thing(), contract=contract) == {
        "Bicycle.made: is date-time, not string",
        "Bicycle.bell: missing",
    }


def test_types_below_an_answer_are_compared_once() -> None:
    wheel = WireType(
        kind="class", fields={"colour": "enum Colour", "size": "enum Size", "hub": "any"}
    )
    contract = CONTRACT._replace(types={**CONTRACT.types, "Wheel": wheel})
    assert found(thing(), contract=contract) == {"Wheel.hub: missing", "Wheel.spokes: extra"}


def test_type_of_another_name_is_found_and_looked_into() -> None:
    bigger = WireType(kind="class", fields={**CONTRACT.types["Wheel"].fields, "hub": "any"})
    types = {"Bicycle": CONTRACT.types["Bicycle"], "Disc": bigger}
    types["Bicycle"] = WireType(
        kind="class", fields={**CONTRACT.types["Bicycle"].fields, "wheels": "list<Disc>"}
    )
    assert found(thing(), contract=CONTRACT._replace(types=types)) == {
        "Bicycle.wheels: is list<Wheel>, not list<Disc>",
        "Disc.hub: missing",
    }


def test_values_of_an_enum_are_compared() -> None:
    colour = WireType(kind="enum", members=[("Red", 0, "red"), ("Blue", 1, "blue")])
    contract = CONTRACT._replace(types={**CONTRACT.types, "Colour": colour})
    assert found(thing(), contract=contract) == {"Colour.green: extra", "Colour.blue: missing"}


def test_type_parameter_stands_for_its_argument() -> None:
    wire = msgspec.structs.replace(CONTRACT.operations["GetThing"], response="Page<Wheel>")
    contract = CONTRACT._replace(operations={"GetThing": wire})
    assert found(thing(returns=Page[Wheel]), contract=contract) == set()
    assert found(thing(returns=Page[Bicycle]), contract=contract) == {
        "GetThing: answers Page<Bicycle>, not Page<Wheel>",
        "Page.results: is list<Bicycle>, not list<Wheel>",
        *(f"Wheel.{name}: missing" for name in ("colour", "size", "spokes")),
        *(f"Wheel.{name}: extra" for name in ("wheels", "made", "extras")),
    }


@pytest.mark.parametrize(
    ("ours", "spelled"),
    [
        (list[Annotated[str, msgspec.Meta(max_length=3)]] | None, "list<string>"),
        (dict[str, list[datetime]], "map<list<date-time>>"),
        (str | dict[str, Any], "string | map<any>"),
        (tuple[int, ...], "list<integer>"),
        (Literal["red"], "enum"),
    ],
)
def test_shape_of_our_types(ours: Any, spelled: str) -> None:
    assert str(shape_of(msgspec.inspect.type_info(ours))) == spelled


def test_every_type_of_the_contract_can_be_read() -> None:
    contract = read_contract()
    leaves = {"string", "integer", "number", "boolean", "date-time", "duration", "any"}
    known = leaves | {"list", "map", "struct", "enum", "union"}
    spelled = {text for each in contract.operations.values() for text in each.fields.values()}
    spelled |= {text for each in contract.types.values() for text in each.fields.values()}
    for shape in map(parsed, spelled):
        assert {shape.family, *(each.family for each in shape.inner)} <= known, shape


def test_unlisted_difference_says_what_to_add() -> None:
    (told,) = complaints({Difference("GetThing", "speed", "extra")}, {})
    assert told.startswith("GetThing.speed: extra")
    assert read_listed(told[told.index("[[") :].replace("Why", "It is why")) == {
        Difference("GetThing", "speed", "extra"): "It is why, in one sentence."
    }


def test_listed_difference_that_is_gone_is_told() -> None:
    (told,) = complaints(set(), {Difference("GetThing", "", "verbs"): "Because it is so."})
    assert "remove it" in told


def test_entry_may_name_several() -> None:
    text = '[[difference]]\non = ["A", "B"]\nmember = ["c", "d"]\nwhat = "extra"\nreason = "{}"'
    assert len(read_listed(text.format("Both of them have both."))) == 4
    with pytest.raises(ValueError, match="no sentence"):
        read_listed(text.format("todo"))
    with pytest.raises(ValueError, match="Listed twice"):
        read_listed("\n".join([text.format("Both of them have both.")] * 2))

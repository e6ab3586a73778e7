"""The registry: look-ups by name and path, and what stops the start."""

import pytest

from aiserver.contract.operation import (
    GET,
    POST,
    Access,
    Answer,
    Call,
    Route,
    operation,
    operation_of,
)
from aiserver.contract.registry import Registry, RegistryError
from aiserver.contract.responses import Wire


def declare(name: str, *routes: Route, summary: str = "Does a thing.") -> type[Wire]:
    made = type(name, (Wire,), {"__doc__": summary, "__module__": __name__})
    return operation(tag="T", verbs=GET, access=Access.OPEN, returns=None, routes=routes)(made)


async def nothing(request: Wire, call: Call) -> Answer:
    return None


def registry(*requests: type[Wire]) -> Registry:
    return Registry(dict.fromkeys(requests, nothing))


def test_name_is_found_in_any_case() -> None:
    found = registry(declare("GetThing"))
    assert found.named("GetThing") is found.named("getthing")
    assert found.named("Other") is None


def test_route_binds_its_variables() -> None:
    found = registry(declare("GetThing", Route("/thing/{Id}", GET), Route("/file/{Path*}", GET)))
    one = found.at("GET", "/thing/5")
    rest = found.at("GET", "/file/a/b.png")
    assert one is not None
    assert rest is not None
    assert (one.variables, rest.variables) == ({"Id": "5"}, {"Path": "a/b.png"})
    assert found.at("GET", "/thing/5/6") is None


def test_route_answers_only_its_verbs() -> None:
    found = registry(
        declare("GetThing", Route("/thing", GET)), declare("SetThing", Route("/thing", POST))
    )
    get, post = found.at("GET", "/thing"), found.at("POST", "/thing")
    assert get is not None
    assert post is not None
    assert (get.operation.name, post.operation.name) == ("GetThing", "SetThing")
    assert found.at("PUT", "/thing") is None
    assert found.verbs_at("/thing") == {"GET", "POST"}


def test_name_twice_stops_the_start() -> None:
    with pytest.raises(RegistryError, match="Two operations are named Getthing"):
        registry(declare("GetThing"), declare("Getthing"))


def test_operation_without_handler_stops_the_start() -> None:
    with pytest.raises(RegistryError, match="No handler answers GetThing"):
        registry().require([declare("GetThing")])


def test_operation_without_summary_stops_the_start() -> None:
    with pytest.raises(RegistryError, match="GetThing has no docstring"):
        registry(declare("GetThing", summary=""))


def test_handler_without_operation_stops_the_start() -> None:
    class Undeclared(Wire):
        """Not an operation."""

    with pytest.raises(RegistryError, match="A handler has no operation: Undeclared"):
        registry(Undeclared)


def test_declaration_is_not_inherited() -> None:
    class Child(declare("GetThing")):  # pyright: ignore[reportGeneralTypeIssues]
        """Another."""

    with pytest.raises(TypeError):
        operation_of(Child)

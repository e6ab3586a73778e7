"""All operations of the server with who answers them; refuses what is incomplete at start-up."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import msgspec

from aiserver.contract.operation import Handler, Operation, operation_of

_VARIABLE = re.compile(r"\{(\w+)(\*?)\}")


class RegistryError(Exception):
    """The operations do not fit together; the server must not start."""


class Match(NamedTuple):
    """An operation found at a path, with the path's variables."""

    operation: Operation
    variables: dict[str, str]


class _Template(NamedTuple):
    pattern: re.Pattern[str]
    verbs: tuple[str, ...]
    operation: Operation


class Registry:
    """Looks operations up by name or by path. `handlers` maps request types to who answers."""

    def __init__(self, handlers: Mapping[type[msgspec.Struct], Handler]) -> None:
        self._by_name: dict[str, Operation] = {}
        self._folded: dict[str, Operation] = {}
        self._handlers: dict[str, Handler] = {}
        self._paths: dict[str, list[tuple[tuple[str, ...], Operation]]] = {}
        self._templates: list[_Template] = []
        for request, handler in handlers.items():
            self._add(request, handler)
        self._check_twins()

    def __iter__(self) -> Iterator[Operation]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    def require(self, requests: Iterable[type[msgspec.Struct]]) -> None:
        """Raises RegistryError for declared operations that nobody answers."""
        missing = [r.__name__ for r in requests if r.__name__ not in self._by_name]
        if missing:
            raise RegistryError(f"No handler answers {', '.join(sorted(missing))}.")

    def named(self, name: str) -> Operation | None:
        """The operation of this name, exactly spelled first, else in any case."""
        return self._by_name.get(name) or self._folded.get(name.lower())

    def handler(self, operation: Operation) -> Handler:
        return self._handlers[operation.name]

    def at(self, method: str, path: str) -> Match | None:
        """The operation that a declared route gives this path; a route's own verbs only."""
        for verbs, operation in self._paths.get(path, ()):
            if method in verbs:
                return Match(operation, {})
        for template in self._templates:
            found = template.pattern.fullmatch(path)
            if found is not None and method in template.verbs:
                return Match(template.operation, found.groupdict())
        return None

    def verbs_at(self, path: str) -> frozenset[str]:
        """Every verb that some route answers at this path."""
        verbs = {v for known, _ in self._paths.get(path, ()) for v in known}
        verbs.update(v for t in self._templates if t.pattern.fullmatch(path) for v in t.verbs)
        return frozenset(verbs)

    def _add(self, request: type[msgspec.Struct], handler: Handler) -> None:
        try:
            operation = operation_of(request)
        except TypeError as error:
            raise RegistryError(f"A handler has no operation: {error}.") from None
        if not operation.summary:
            raise RegistryError(f"{operation.name} has no docstring to be its summary.")
        if operation.name.lower() in self._folded:
            raise RegistryError(f"Two operations are named {operation.name}.")
        self._by_name[operation.name] = operation
        self._folded[operation.name.lower()] = operation
        self._handlers[operation.name] = handler
        for route in operation.routes:
            self._add_route(route.path, route.verbs, operation)

    def _check_twins(self) -> None:
        """A job can be asked after, and the operation that does its work is there."""
        for each in self:
            original = each.queues
            if original is None:
                continue
            status = original.queued.status if original.queued is not None else ""
            for name in (original.name, status):
                if name not in self._by_name:
                    raise RegistryError(f"{each.name} needs {name!r}, which is missing.")

    def _add_route(self, path: str, verbs: tuple[str, ...], operation: Operation) -> None:
        if "{" not in path:
            self._paths.setdefault(path, []).append((verbs, operation))
            return
        self._templates.append(_Template(_compile(path), verbs, operation))


def _compile(path: str) -> re.Pattern[str]:
    parts: list[str] = []
    end = 0
    for variable in _VARIABLE.finditer(path):
        parts.append(re.escape(path[end : variable.start()]))
        parts.append(f"(?P<{variable[1]}>{'.+' if variable[2] else '[^/]+'})")
        end = variable.end()
    return re.compile("".join(parts) + re.escape(path[end:]))

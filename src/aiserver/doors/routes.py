"""What an address means: an operation, the form of its answer, one request or a batch."""

from collections.abc import Iterable

import msgspec

from aiserver.contract.errors import InvalidRequest, MethodNotAllowed, NotFound
from aiserver.contract.operation import Operation
from aiserver.contract.registry import Registry

# The second and third are what older typed clients call.
_BASES = ("/api/", "/json/reply/", "/json/oneway/")
_VERBS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})
_FORMATS = ("json", "csv")


class Found(msgspec.Struct, frozen=True):
    operation: Operation
    variables: dict[str, str] = {}
    format: str = "json"
    batch: bool = False


def find(registry: Registry, method: str, path: str, query: Iterable[tuple[str, str]]) -> Found:
    """Raises NotFound, MethodNotAllowed, or InvalidRequest for an unknown format."""
    asked = next((value.lower() for name, value in query if name.lower() == "format"), "")
    if asked and asked not in _FORMATS:
        raise InvalidRequest(f"The format {asked[:20]!r} is not known; use json or csv.")
    match = registry.at("GET" if method == "HEAD" else method, path)
    if match is not None:
        return Found(match.operation, match.variables, asked or "json")
    for base in _BASES:
        if path.startswith(base):
            return _named(registry, method, path[len(base) :], asked)
    # Ruby's client posts to /query-ai-models where others call /api/QueryAiModels.
    kebab = registry.named(path[1:].replace("-", "")) if "-" in path else None
    if kebab is not None and method == "POST":
        return Found(kebab, {}, asked or "json")
    known = registry.verbs_at(path)
    if known:
        raise MethodNotAllowed(f"{path} answers {', '.join(sorted(known))}, not {method}.")
    raise NotFound(f"There is nothing at {path[:200]}.")


def _named(registry: Registry, method: str, written: str, asked: str) -> Found:
    name, _, suffix = written.partition(".")
    batch = name.endswith("[]")
    operation = registry.named(name.removesuffix("[]"))
    if operation is None or (suffix and suffix.lower() not in _FORMATS):
        raise NotFound(f"There is no operation {written[:100]!r}.")
    if method not in _VERBS and not (method == "HEAD" and operation.verbs == ("GET",)):
        raise MethodNotAllowed(f"{operation.name} does not answer {method}.")
    if batch and method not in ("POST", "PUT", "PATCH"):
        raise MethodNotAllowed("A batch is a POST of a JSON array.")
    return Found(operation, {}, asked or suffix.lower() or "json", batch)

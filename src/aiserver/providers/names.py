"""What a name that callers ask for means: which providers serve it, and what they call it."""

from collections.abc import Callable, Iterable, Mapping

from aiserver.contract.errors import ModelNotFound, NotFound
from aiserver.providers.catalogue import BY_ID
from aiserver.providers.choice import Candidate, Route
from aiserver.providers.store import Provider

_LATEST = ":latest"
# Callers choose the names, so what is kept of them has a bound.
MOST_ROUTES = 10_000

Qualified = Callable[[str], str | None]


def served_models(
    provider: Provider, listed: Mapping[str, str], qualified: Qualified
) -> dict[str, str]:
    """Names as callers ask for them, with the upstream's own; `listed` is what it says itself."""
    if not provider.models:
        return dict(listed)
    mapping = BY_ID[provider.ai_type_id].wire.api_models
    return {
        m.model: m.api_model
        or mapping.get(m.model)
        or mapping.get(qualified(m.model) or m.model)
        or m.model
        for m in provider.models
    }


def mapped_models(provider: Provider, listed: Mapping[str, str]) -> dict[str, str]:
    """Names of the catalogue that the upstream lists under another name."""
    if provider.models:
        return {}
    mapping = BY_ID[provider.ai_type_id].wire.api_models
    return {name: other for name, other in mapping.items() if other in listed}


class Names:
    """Routes of the providers that are enabled, found once for each name that is asked for."""

    def __init__(self, qualified: Qualified) -> None:
        self._qualified = qualified
        self._usable: list[Candidate] = []
        self._routes: dict[tuple[str, str | None], Route] = {}

    def renew(self, candidates: Iterable[Candidate]) -> None:
        self._usable = [c for c in candidates if c.provider.enabled]
        self._routes = {}

    def route(self, model: str, provider: str | None) -> Route:
        """Raises NotFound for an unknown provider and ModelNotFound when nobody serves it."""
        route = self._routes.get((model, provider))
        if route is None:
            route = self._found(model, provider)
            if len(self._routes) >= MOST_ROUTES:
                self._routes.clear()
            self._routes[model, provider] = route
        return route

    def _found(self, model: str, provider: str | None) -> Route:
        named = self._named(provider)
        route = self._literal(named, model)
        if route is None:
            route = self._of_provider(named, model) or self._mapped(named, model)
        if route is None:
            at = f" at provider {provider}" if provider else ""
            raise ModelNotFound(
                f"Model {model} not found{at}. GET /v1/models lists the models that can be used.",
                param="model",
            )
        return route

    def _literal(self, among: list[Candidate], model: str) -> Route | None:
        for name in self._spellings(model):
            able = {c: c.models[name] for c in among if name in c.models}
            if able:
                return Route(name, able)
        return None

    def _of_provider(self, among: list[Candidate], model: str) -> Route | None:
        """`provider/model`, the provider in any case."""
        folded = model.casefold()
        for candidate in among:
            if folded.startswith(f"{candidate.name.casefold()}/"):
                rest = model[len(candidate.name) + 1 :]
                route = self._literal([candidate], rest) or self._mapped([candidate], rest)
                if route is not None:
                    return route
        return None

    def _mapped(self, among: list[Candidate], model: str) -> Route | None:
        for name in self._spellings(model):
            able = {c: c.mapped[name] for c in among if name in c.mapped}
            if able:
                return Route(name, able)
        return None

    def _spellings(self, model: str) -> list[str]:
        full = self._qualified(model)
        # Ollama lists :latest for what is asked for without a tag.
        latest = model.removesuffix(_LATEST) if model.endswith(_LATEST) else f"{model}{_LATEST}"
        return [model, *([full] if full else []), latest]

    def _named(self, name: str | None) -> list[Candidate]:
        if name is None:
            return self._usable
        named = [c for c in self._usable if c.name.casefold() == name.casefold()]
        if not named:
            known = ", ".join(c.name for c in self._usable) or "none"
            raise NotFound(
                f"There is no provider {name!r}. Known providers: {known}.",
                param="provider",
                reason="provider_not_found",
            )
        return named

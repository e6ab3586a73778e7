"""What `doctor` asks of providers: whether each is reached, takes its key and lists its models."""

import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from aiserver.chat.adapters.dialects import ADAPTERS
from aiserver.chat.failures import Failure
from aiserver.chat.upstreams import Upstreams
from aiserver.cli.checks import FAILED, OK, WARNING, Finding, Installation
from aiserver.contract.errors import ApiError
from aiserver.kit.upstream import Target, Timeouts, UpstreamError, UpstreamPool
from aiserver.providers.catalogue import BY_ID, TYPES, ProviderType
from aiserver.providers.endpoints import Endpoints
from aiserver.providers.health import FailureKind
from aiserver.providers.store import EMBEDDED, ENVIRONMENT, Provider

_SKEW_SECONDS = 60
_BRIEF = Timeouts(connect=3, first_byte=3, gap=3, total=5)
_TLS_WORDS = ("certificate", "ssl", "tls")
_EDIT = "ai-server providers edit"
_ADVICE = {
    FailureKind.UNREACHABLE: "Check that it runs, and its address: {address}",
    FailureKind.TIMEOUT: "Check the network between, and its address: {address}",
    FailureKind.CREDENTIALS: "Give it a key that it takes: {key}",
    FailureKind.MODEL_MISSING: "Nothing lists models there; check its address: {address}",
    FailureKind.LIMITED: "It limits calls now; try again later.",
    FailureKind.BROKEN: "What answers does not speak its protocol; check its address: {address}",
}
_TLS_ADVICE = "Check its certificate and this machine's: SSL_CERT_FILE names your own authority."

Asked = tuple[str, Callable[[], Awaitable[Finding]]]


class ProviderChecks:
    """`close` ends the connections that the checks opened."""

    def __init__(self, at: Installation, learn: Callable[[str], None]) -> None:
        self._at = at
        self._texts = at.settings.texts()
        self._endpoints = Endpoints(at.store, self._texts, _no_engine, learn)
        self._pool = UpstreamPool()
        self._upstreams = Upstreams(self._pool, ADAPTERS)

    async def close(self) -> None:
        await self._pool.aclose()

    def all(self) -> list[Asked]:
        """One for each provider, the embedded one apart, and one for the clock."""
        asked = [p for p in (*self._at.providers, *self._coming()) if p.source != EMBEDDED]
        return [
            *(self._check(provider) for provider in asked),
            ("clock", lambda: self._clock(asked)),
        ]

    def _check(self, provider: Provider) -> Asked:
        name = f"provider {provider.name}"
        return name, lambda: self._ask(name, provider)

    def _coming(self) -> list[Provider]:
        """Those that the next start of the server takes from its settings."""
        present = {provider.name for provider in self._at.providers}
        return [
            Provider(
                id=-number,
                name=kind.name,
                source=ENVIRONMENT,
                ai_type_id=kind.wire.id,
                api_base_url=self._texts.get(kind.address or ""),
                api_key_var=kind.variable,
                created=datetime.now(UTC),
            )
            for number, kind in enumerate(TYPES, 1)
            if kind.name not in present and self._is_set(kind)
        ]

    def _is_set(self, kind: ProviderType) -> bool:
        return bool(self._texts.get(kind.variable or kind.address or ""))

    async def _ask(self, name: str, provider: Provider) -> Finding:
        if not provider.enabled:
            return Finding(name, OK, "disabled; not asked")
        if missing := self._missing_variable(provider):
            do = f"Set {missing}; without it the server leaves this provider out."
            return Finding(name, WARNING, f"{missing} is not set here; not asked", do)
        try:
            endpoint = await self._endpoints.of(provider)
            listed = await self._upstreams.list_models(endpoint, provider.name)
        except ApiError as error:
            return Finding(name, FAILED, error.message, _advice(provider, FailureKind.CREDENTIALS))
        except Failure as failure:
            return _failed(name, provider, failure)
        return _listed(name, provider, listed)

    def _missing_variable(self, provider: Provider) -> str | None:
        variable = provider.api_key_var
        if provider.source == ENVIRONMENT:
            return variable if variable and not self._texts.get(variable) else None
        if variable is None or provider.api_key is not None:
            return None
        return None if os.environ.get(variable) else variable

    async def _clock(self, providers: list[Provider]) -> Finding:
        for provider in providers:
            if not provider.enabled or (skew := await self._skew(provider)) is None:
                continue
            found = f"{abs(skew):.0f} s {'behind' if skew > 0 else 'ahead of'} {provider.name}"
            if abs(skew) <= _SKEW_SECONDS:
                return Finding("clock", OK, f"agrees with {provider.name}")
            return Finding("clock", WARNING, found, "Set this machine's clock, best by NTP.")
        return Finding("clock", OK, "no provider to compare it with")

    async def _skew(self, provider: Provider) -> float | None:
        """Seconds that this machine is behind; None when the provider does not tell the time."""
        kind = BY_ID[provider.ai_type_id].wire
        try:
            target = Target.parse(provider.api_base_url or kind.api_base_url)
            async with await self._pool.send(target, method=b"HEAD", timeouts=_BRIEF) as answer:
                told = parsedate_to_datetime(answer.headers[b"date"].decode("latin-1"))
        except (UpstreamError, KeyError, ValueError):
            return None
        return (told.replace(tzinfo=told.tzinfo or UTC) - datetime.now(UTC)).total_seconds()


async def _no_engine() -> tuple[str, str]:
    raise ApiError("The embedded model belongs to the running server.")


def _failed(name: str, provider: Provider, failure: Failure) -> Finding:
    detail = failure.detail if failure.detail != failure.error.message else ""
    found = f"{failure.error.message} {detail}".strip()
    tls = failure.kind is FailureKind.UNREACHABLE and any(w in detail.lower() for w in _TLS_WORDS)
    do = _TLS_ADVICE if tls else _advice(provider, failure.kind)
    return Finding(name, FAILED, found, do)


def _advice(provider: Provider, kind: FailureKind) -> str:
    type = BY_ID[provider.ai_type_id]
    if provider.source == ENVIRONMENT:
        address, key = f"set {type.address}", f"set {type.variable}"
    else:
        address = f"{_EDIT} {provider.name} --url"
        key = f"{_EDIT} {provider.name} --key-stdin"
    return _ADVICE.get(kind, "Try again later.").format(address=address, key=key)


def _listed(name: str, provider: Provider, listed: list[str]) -> Finding:
    if not listed:
        return Finding(name, WARNING, "takes calls but lists no models", "Check its account.")
    known = {*listed, *(model.removesuffix(":latest") for model in listed)}
    wanted = [model.api_model or model.model for model in provider.models]
    absent = [model for model in wanted if model not in known]
    found = f"takes calls; lists {len(listed)} models"
    if absent:
        do = f"Correct its models: {_EDIT} {provider.name} --model"
        return Finding(name, WARNING, f"{found}, but not {', '.join(absent[:5])}", do)
    return Finding(name, OK, found)

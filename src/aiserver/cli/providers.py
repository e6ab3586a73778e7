"""ai-server providers: list and change the providers of chat models."""

import asyncio
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Annotated, Any

import msgspec
import typer

from aiserver import settings as s
from aiserver.cli.checks import FAILED
from aiserver.cli.console import CommandError, note, reported, say, show, table
from aiserver.cli.installation import opened
from aiserver.cli.options import DataFlag, FileFlag, JsonFlag, load
from aiserver.cli.provider_trial import Trial, Tried
from aiserver.cli.session import with_data
from aiserver.contract.errors import ApiError
from aiserver.data import Data
from aiserver.kit.redact import Redactor
from aiserver.providers.catalogue import BY_ID
from aiserver.providers.handlers import checked, refuse_identity
from aiserver.providers.operations import AiProviderModel, CreateAiProvider, UpdateAiProvider
from aiserver.providers.store import ADMIN, NameTaken, Provider

commands = typer.Typer(help="Providers of chat models.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(help="The provider's name.")]
UrlFlag = Annotated[str | None, typer.Option("--url", help="Base URL; its type's without it.")]
KeyVarFlag = Annotated[
    str | None, typer.Option("--key-var", help="Environment variable that holds the key.")
]
KeyFlag = Annotated[
    bool, typer.Option("--key-stdin", help="Read the upstream key from standard input.")
]
ModelFlag = Annotated[
    list[str] | None,
    typer.Option("--model", help="Model served, as name or name=upstream-name; repeatable."),
]
PriorityFlag = Annotated[int | None, typer.Option("--priority", help="Higher is tried first.")]
ConcurrencyFlag = Annotated[
    int | None, typer.Option("--concurrency", help="Calls at once; 0 is no limit.")
]
WeightFlag = Annotated[
    int | None,
    typer.Option("--weight", min=1, max=1000, help="Its part of the load beside others."),
]
ChatFlag = Annotated[
    str | None, typer.Option("--chat", help="Also sends this model one tiny chat; it may cost.")
]

_SHOWN_MODELS = 20


@commands.command("list")
def list_providers(
    data: DataFlag = None, config: FileFlag = None, as_json: JsonFlag = False
) -> None:
    """Lists the providers, never their keys."""

    async def rows(opened: Data) -> list[dict[str, Any]]:
        return [_row(provider) for provider in await opened.providers.all()]

    with reported():
        found = with_data(data, config, rows)
    if as_json:
        show(found)
        return
    columns = {
        "id": "ID",
        "name": "Name",
        "type": "Type",
        "source": "From",
        "url": "URL",
        "hasKey": "Key",
        "enabled": "Enabled",
        "priority": "Priority",
        "concurrency": "Slots",
        "weight": "Weight",
        "models": "Models",
    }
    table(found, columns, empty="No providers yet. Add one: ai-server providers add --help")


@commands.command("add")
def add(
    name: NameArgument,
    kind: Annotated[str, typer.Option("--type", help=f"One of: {', '.join(BY_ID)}.")],
    url: UrlFlag = None,
    key_var: KeyVarFlag = None,
    key_stdin: KeyFlag = False,
    model: ModelFlag = None,
    priority: PriorityFlag = None,
    concurrency: ConcurrencyFlag = None,
    weight: WeightFlag = None,
    data: DataFlag = None,
    config: FileFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Adds a provider. Without --model it serves what the upstream lists."""
    request = CreateAiProvider(
        ai_type_id=kind,
        name=name,
        api_base_url=url,
        api_key_var=key_var,
        api_key=_key() if key_stdin else None,
        models=_models(model),
        priority=priority,
        concurrency=concurrency,
        weight=weight,
    )

    async def create(opened: Data) -> Provider:
        members = checked(request)
        try:
            return await opened.providers.create(name, ADMIN, members)
        except NameTaken:
            raise CommandError(f"A provider named {name} exists already.") from None

    with reported(), _explained():
        provider = with_data(data, config, create)
    _done(provider, "added", as_json)


@commands.command("edit")
def edit(
    name: NameArgument,
    new_name: Annotated[str | None, typer.Option("--name", help="New name.")] = None,
    url: UrlFlag = None,
    key_var: KeyVarFlag = None,
    key_stdin: KeyFlag = False,
    model: ModelFlag = None,
    priority: PriorityFlag = None,
    concurrency: ConcurrencyFlag = None,
    weight: WeightFlag = None,
    data: DataFlag = None,
    config: FileFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Changes what is given."""
    request = UpdateAiProvider(
        id=0,
        name=new_name,
        api_base_url=url,
        api_key_var=key_var,
        api_key=_key() if key_stdin else None,
        models=_models(model),
        priority=priority,
        concurrency=concurrency,
        weight=weight,
    )
    with reported(), _explained():
        provider = with_data(data, config, _changer(name, lambda _: checked(request)))
    _done(provider, "changed", as_json)


@commands.command("enable")
def enable(
    name: NameArgument, data: DataFlag = None, config: FileFlag = None, as_json: JsonFlag = False
) -> None:
    """Lets a provider take calls."""
    with reported(), _explained():
        provider = with_data(data, config, _changer(name, lambda _: {"enabled": True}))
    _done(provider, "enabled", as_json)


@commands.command("disable")
def disable(
    name: NameArgument, data: DataFlag = None, config: FileFlag = None, as_json: JsonFlag = False
) -> None:
    """Keeps new calls from a provider."""
    with reported(), _explained():
        provider = with_data(data, config, _changer(name, lambda _: {"enabled": False}))
    _done(provider, "disabled", as_json)


@commands.command("remove")
def remove(
    name: NameArgument, data: DataFlag = None, config: FileFlag = None, as_json: JsonFlag = False
) -> None:
    """Removes a provider."""

    async def delete(opened: Data) -> Provider:
        provider = await _find(opened, name)
        if provider.source != ADMIN:
            raise CommandError(f"{name} comes from the settings; unset its variable or disable it.")
        await opened.providers.delete(provider.id)
        return provider

    with reported():
        provider = with_data(data, config, delete)
    _done(provider, "removed", as_json)


@commands.command("test")
def try_out(
    name: NameArgument,
    chat: ChatFlag = None,
    data: DataFlag = None,
    config: FileFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Asks a provider for its models, beside a running server or without one."""
    redact = Redactor()
    with reported():
        settings = load(data, config)
        for setting in s.SETTINGS:
            if isinstance(value := settings.get(setting), s.Secret):
                redact.learn(value.reveal())
        tried = asyncio.run(_tried(settings, name, chat, redact))
    if as_json:
        show(tried)
    else:
        _say_tried(tried)
    if tried.state == FAILED:
        raise typer.Exit(1)


async def _tried(settings: s.Settings, name: str, chat: str | None, redact: Redactor) -> Tried:
    async with opened(settings, redact) as at:
        provider = _found(list(at.providers), name)
        if chat is not None:
            note(f"One tiny chat with {chat} goes to {provider.name}, which may bill it.")
        trial = Trial(at, provider, redact.learn)
        try:
            tried = await trial.run(chat)
        finally:
            await trial.close()
    tried.found, tried.do = redact(tried.found), redact(tried.do)
    return tried


def _say_tried(tried: Tried) -> None:
    say(f"Provider {tried.provider}: {tried.found} ({tried.seconds:.2f} s).")
    if tried.models:
        more = len(tried.models) - _SHOWN_MODELS
        listed = ", ".join(tried.models[:_SHOWN_MODELS])
        say(f"Models: {listed}{f' and {more} more' if more > 0 else ''}")
    if tried.chat is not None:
        say(f"Chat: {tried.chat!r} ({tried.chat_seconds:.2f} s).")
    if tried.do:
        say(f"What to do: {tried.do}")


def _changer(name: str, change: Callable[[Provider], dict[str, Any]]) -> Any:
    async def run(opened: Data) -> Provider:
        provider = await _find(opened, name)
        members = change(provider)
        if provider.source != ADMIN:
            refuse_identity(provider, members)
        try:
            await opened.providers.update(provider, members)
        except NameTaken:
            raise CommandError(f"A provider named {members['name']} exists already.") from None
        return provider

    return run


async def _find(opened: Data, name: str) -> Provider:
    return _found(await opened.providers.all(), name)


def _found(providers: list[Provider], name: str) -> Provider:
    for provider in providers:
        if name in (provider.name, str(provider.id)):
            return provider
    known = ", ".join(p.name for p in providers) or "none"
    raise CommandError(f"There is no provider {name!r}. Known providers: {known}.")


def _row(provider: Provider) -> dict[str, Any]:
    return {
        "id": provider.id,
        "name": provider.name,
        "type": provider.ai_type_id,
        "source": provider.source,
        "url": provider.api_base_url or BY_ID[provider.ai_type_id].wire.api_base_url,
        "hasKey": provider.api_key is not None or provider.api_key_var is not None,
        "enabled": provider.enabled,
        "priority": provider.priority,
        "concurrency": provider.concurrency,
        "weight": provider.weight,
        "models": [m.model for m in provider.models] or ["(as the upstream lists)"],
    }


def _models(given: list[str] | None) -> list[AiProviderModel] | None:
    if given is None:
        return None
    pairs = [text.partition("=") for text in given]
    named = [{"model": name, "apiModel": other or None} for name, _, other in pairs]
    try:
        return msgspec.convert(named, list[AiProviderModel])
    except msgspec.ValidationError:
        # A row that cannot be read again would keep the server from starting.
        raise typer.BadParameter(
            "--model takes name or name=upstream-name, each 1 to 300 long."
        ) from None


def _key() -> str:
    return sys.stdin.readline().strip()


@contextmanager
def _explained() -> Generator[None]:
    """What the server would answer a caller with, said on the command line."""
    try:
        yield
    except ApiError as error:
        raise CommandError("; ".join(f.message for f in error.fields) or error.message) from None


def _done(provider: Provider, what: str, as_json: bool) -> None:
    if as_json:
        show({"id": provider.id, "name": provider.name, "done": what})
    else:
        say(f"Provider {provider.name} {what}.")

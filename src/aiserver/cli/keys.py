"""ai-server keys: create, list and change API keys."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import msgspec
import typer

from aiserver.cli.console import CommandError, note, reported, say, show, table
from aiserver.cli.options import DataFlag, FileFlag, JsonFlag
from aiserver.cli.session import with_data
from aiserver.data import Data
from aiserver.keys.handlers import partial
from aiserver.keys.store import PUBLIC_ARTIFACTS, ApiKey, new_key
from aiserver.settings import seconds

commands = typer.Typer(help="API keys and the administrator's secret.", no_args_is_help=True)

KeyArgument = Annotated[str, typer.Argument(help="A key's id, its name, or its last characters.")]
ScopesFlag = Annotated[list[str] | None, typer.Option("--scope", help="Scope; Admin.")]
RestrictFlag = Annotated[
    list[str] | None, typer.Option("--restrict-to", help="Operation that the key may call.")
]
FeaturesFlag = Annotated[
    list[str] | None,
    typer.Option("--feature", help=f"Feature; {PUBLIC_ARTIFACTS} lets anybody read its results."),
]
ModelsFlag = Annotated[
    list[str] | None, typer.Option("--model", help="Model that the key may ask for.")
]
ExpiresFlag = Annotated[
    str | None, typer.Option("--expires", help="A date such as 2027-01-31, or a time: 30d.")
]
NotesFlag = Annotated[str | None, typer.Option("--notes", help="Free text.")]
_CLEARABLE = "scopes, features, restrict-to, models, expires, notes"


@commands.command("create")
def create(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    scope: ScopesFlag = None,
    feature: FeaturesFlag = None,
    restrict_to: RestrictFlag = None,
    model: ModelsFlag = None,
    expires: ExpiresFlag = None,
    notes: NotesFlag = None,
    data: DataFlag = None,
    config: FileFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Creates a key and prints it, this once."""
    with reported():
        members = {
            "name": name,
            "scopes": scope,
            "features": feature,
            "restrict_to": restrict_to,
            "models": model,
            "expires": _moment(expires),
            "notes": notes,
        }
        text = new_key()
        key = with_data(data, config, lambda opened: opened.keys.create(text, members))
    if as_json:
        show({"id": key.id, "name": key.name, "key": text})
    else:
        say(text)
        note("Keep it now: it is not shown again.")


@commands.command("list")
def list_keys(data: DataFlag = None, config: FileFlag = None, as_json: JsonFlag = False) -> None:
    """Lists the keys, never their text."""
    with reported():
        now = datetime.now(UTC)
        keys = with_data(data, config, _all)
        rows = [msgspec.to_builtins(partial(key, now)) for key in keys]
    if as_json:
        show(rows)
        return
    columns = {
        "id": "ID",
        "name": "Name",
        "visibleKey": "Key",
        "active": "Active",
        "scopes": "Scopes",
        "restrictTo": "Restricted to",
        "models": "Models",
        "expiryDate": "Expires",
        "lastUsedDate": "Last used",
    }
    if any(row["features"] for row in rows):
        columns["features"] = "Features"
    table(rows, columns, empty="No keys yet. Create one: ai-server keys create my-app")


@commands.command("edit")
def edit(
    key: KeyArgument,
    name: Annotated[str | None, typer.Option("--name", help="New name.")] = None,
    scope: ScopesFlag = None,
    feature: FeaturesFlag = None,
    restrict_to: RestrictFlag = None,
    model: ModelsFlag = None,
    expires: ExpiresFlag = None,
    notes: NotesFlag = None,
    clear: Annotated[
        list[str] | None,
        typer.Option(help=f"Empties one of {_CLEARABLE}."),
    ] = None,
    data: DataFlag = None,
    config: FileFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Changes what is given; --clear empties a member."""
    with reported():
        members = {
            "name": name,
            "scopes": scope,
            "features": feature,
            "restrict_to": restrict_to,
            "models": model,
            "expires": _moment(expires),
            "notes": notes,
        }
        changes: dict[str, Any] = {m: v for m, v in members.items() if v is not None}
        for member in clear or []:
            changes[_clearable(member)] = None
        found = with_data(data, config, lambda opened: _change(opened, key, changes))
    _done(found, "changed", as_json)


@commands.command("disable")
def disable(
    key: KeyArgument, data: DataFlag = None, config: FileFlag = None, as_json: JsonFlag = False
) -> None:
    """Refuses calls with this key from now on; `enable` takes it back."""
    with reported():
        changes = {"cancelled": datetime.now(UTC)}
        found = with_data(data, config, lambda opened: _change(opened, key, changes))
    _done(found, "disabled", as_json)


@commands.command("enable")
def enable(
    key: KeyArgument, data: DataFlag = None, config: FileFlag = None, as_json: JsonFlag = False
) -> None:
    """Lets a disabled key in again."""
    with reported():
        found = with_data(data, config, lambda opened: _change(opened, key, {"cancelled": None}))
    _done(found, "enabled", as_json)


@commands.command("delete")
def delete(
    key: KeyArgument, data: DataFlag = None, config: FileFlag = None, as_json: JsonFlag = False
) -> None:
    """Deletes a key for good."""

    async def remove(opened: Data) -> ApiKey:
        found = await _find(opened, key)
        await opened.keys.delete(found.id)
        await opened.callback_secrets.forget(found.id)
        return found

    with reported():
        found = with_data(data, config, remove)
    _done(found, "deleted", as_json)


@commands.command("rotate")
def rotate(
    key: KeyArgument, data: DataFlag = None, config: FileFlag = None, as_json: JsonFlag = False
) -> None:
    """Gives a key a new text and prints it, this once; the old text is refused from now on."""
    text = new_key()

    async def replace(opened: Data) -> ApiKey:
        found = await _find(opened, key)
        await opened.keys.rotate(found.id, text)
        return found

    with reported():
        found = with_data(data, config, replace)
    if as_json:
        show({"id": found.id, "name": found.name, "key": text})
    else:
        say(text)
        note("Keep it now: it is not shown again. The old text is refused from now on.")


@commands.command("reset-admin")
def reset_admin(data: DataFlag = None, config: FileFlag = None, as_json: JsonFlag = False) -> None:
    """Makes a new administrator's secret and prints it, this once."""
    with reported():
        text = with_data(data, config, lambda opened: opened.secret.replace())
    if as_json:
        show({"authSecret": text})
    else:
        say(text)
        note("Keep it now: it is not shown again. AUTH_SECRET, where set, is used instead of it.")


@commands.command("rotate-encryption")
def rotate_encryption(
    data: DataFlag = None, config: FileFlag = None, as_json: JsonFlag = False
) -> None:
    """Makes a new key for upstream keys at rest and encrypts them with it, beside a server too."""

    async def rotate(opened: Data) -> int:
        if opened.key_file is None:
            raise CommandError(
                "The encryption key comes from ENCRYPTION_KEY; unset it to use APP_DATA's own."
            )
        # Both keys are in the file until all is sealed anew: a stop half-way loses nothing.
        opened.key_file.add()
        count = await opened.providers.seal_again()
        count += await opened.callback_secrets.seal_again()
        opened.key_file.keep_newest()
        return count

    with reported():
        count = with_data(data, config, rotate)
    if as_json:
        show({"encrypted": count})
    else:
        say(f"{count} upstream keys and callback secrets are encrypted with a new key.")
        note("Renew your backup of the encryption key.")


async def _all(opened: Data) -> list[ApiKey]:
    return await opened.keys.all()


async def _change(opened: Data, sought: str, changes: dict[str, Any]) -> ApiKey:
    found = await _find(opened, sought)
    await opened.keys.update(found.id, changes)
    return found


async def _find(opened: Data, sought: str) -> ApiKey:
    keys = await opened.keys.all()
    found = [k for k in keys if sought in (str(k.id), k.name)]
    found = found or [k for k in keys if len(sought) >= 3 and k.visible.endswith(sought[-3:])]
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(str(k.id) for k in found)
        raise CommandError(f"{sought!r} means several keys: {ids}. Give the id.")
    raise CommandError(f"There is no key {sought!r}. `ai-server keys list` shows them.")


def _clearable(member: str) -> str:
    if member.replace("_", "-") not in _CLEARABLE.split(", "):
        raise CommandError(f"--clear {member}: use {_CLEARABLE}.")
    return member.replace("-", "_")


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return datetime.now(UTC) + timedelta(seconds=seconds(text))
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise CommandError(f"--expires {text}: use a date such as 2027-01-31, or 30d.") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _done(key: ApiKey, what: str, as_json: bool) -> None:
    if as_json:
        show({"id": key.id, "name": key.name, "done": what})
    else:
        say(f"Key {key.id} ({key.name}) {what}.")

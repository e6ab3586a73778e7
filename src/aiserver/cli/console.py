"""What commands print: tables and sentences for people, JSON with --json, problems on stderr."""

import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from aiserver.doors.listen import CannotListen
from aiserver.kit.crypto import EncryptionKeyError
from aiserver.kit.db import StorageError
from aiserver.kit.lock import AlreadyRunning
from aiserver.kit.redact import Redactor
from aiserver.kit.workers import NoWorkers
from aiserver.settings import SettingError

_WIDEST = 10_000
_out = Console(highlight=False, soft_wrap=True)
if not _out.is_terminal:
    # What a program reads has a line for each row of a table, however long.
    _out.width = _WIDEST
_err = Console(stderr=True, highlight=False, soft_wrap=True)


class CommandError(Exception):
    """A command that cannot do what was asked; the message says what to do."""


@contextmanager
def reported() -> Generator[None]:
    """Turns what a person can mend into one sentence and exit code 1."""
    try:
        yield
    except (
        AlreadyRunning,
        CannotListen,
        CommandError,
        EncryptionKeyError,
        SettingError,
        NoWorkers,
        StorageError,
    ) as error:
        _err.print(f"[red]Error:[/red] {_escaped(Redactor()(str(error)))}")
        raise typer.Exit(1) from None


def say(text: str) -> None:
    _out.print(_escaped(text))


def note(text: str) -> None:
    """For people only: on stderr, so that --json stays clean."""
    _err.print(_escaped(text))


def show(value: Any) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], *, empty: str) -> None:
    """`columns` maps a row's member to its title; `empty` is said when there are no rows."""
    if not rows:
        say(empty)
        return
    drawn = Table(box=None, header_style="bold", pad_edge=False)
    for title in columns.values():
        drawn.add_column(title, overflow="fold")
    for row in rows:
        drawn.add_row(*(_escaped(_cell(row.get(member))) for member in columns))
    _out.print(drawn)


def _cell(value: Any) -> str:
    if value is None or value == []:
        return "-"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")

"""Flags that many commands share."""

from pathlib import Path
from typing import Annotated

import typer

from aiserver import settings as s

DataFlag = Annotated[
    Path | None, typer.Option("--data", help="Folder of the server's data (APP_DATA).")
]
FileFlag = Annotated[Path | None, typer.Option("--config", help="Settings file; ai-server.toml.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def load(data: Path | None, file: Path | None, **flags: str | None) -> s.Settings:
    """The settings with the flags that were given on top."""
    given = {name: value for name, value in flags.items() if value is not None}
    if data is not None:
        given[s.APP_DATA.name] = str(data)
    return s.load(flags=given, file=file)

"""ai-server serve: starts the server and says where it is."""

from typing import Annotated

import typer

from aiserver import __version__, app
from aiserver import settings as s
from aiserver.cli.console import note, reported, say
from aiserver.cli.models import fetch, store_for
from aiserver.cli.options import DataFlag, FileFlag, load
from aiserver.doors.listen import bind
from aiserver.providers.local.weights import WEIGHTS, WeightUnavailable

HELP = "Starts the server.\n\nSettings, as flags, environment variables or in ai-server.toml:\n\n"


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (HOST).")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (PORT).")] = None,
    workers: Annotated[int | None, typer.Option(help="Gateway processes (WORKERS).")] = None,
    pull_models: Annotated[
        bool, typer.Option("--pull-models", help="First fetch the embedded model if it is absent.")
    ] = False,
    data: DataFlag = None,
    config: FileFlag = None,
) -> None:
    """Starts the server."""
    with reported():
        settings = load(
            data,
            config,
            HOST=host,
            PORT=None if port is None else str(port),
            WORKERS=None if workers is None else str(workers),
        )
        sockets = bind(settings[s.HOST], settings[s.PORT])
        if pull_models and settings[s.LOCAL_MODELS]:
            _pull(settings)
        name, bound = settings[s.HOST], sockets[0].getsockname()[1]
        url = f"http://{f'[{name}]' if ':' in name else name}:{bound}"
        app.serve(settings, sockets=sockets, announce=lambda secret: _announce(url, secret))


def _pull(settings: s.Settings) -> None:
    try:
        fetch(store_for(settings), WEIGHTS[0])
    except WeightUnavailable as error:
        note(f"The embedded model is not here yet: {error}")
        note("The server starts without it; other providers are not affected.")


def _announce(url: str, secret: str | None) -> None:
    say(f"AI Server {__version__} is ready on {url}")
    if secret is not None:
        say(f"Administrator's secret, shown this once: {secret}")
        say("Lost it? `ai-server keys reset-admin` makes another.")


def settings_help() -> str:
    """The settings table as the help of `serve` shows it."""
    lines = [
        f"{setting.name}  {setting.help}"
        + (f" [default: {setting.default}]" if setting.default else "")
        for setting in s.SETTINGS
    ]
    return HELP + "\n\n".join(lines)

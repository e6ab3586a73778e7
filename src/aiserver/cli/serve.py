"""ai-server serve: starts the server and says where it is."""

import socket
from collections.abc import Callable
from typing import Annotated

import typer
import uvloop

from aiserver import __version__
from aiserver import settings as s
from aiserver.app import App
from aiserver.cli.console import note, reported, say
from aiserver.cli.models import fetch, store_for
from aiserver.cli.options import DataFlag, FileFlag, load
from aiserver.data import data_folder, open_data, redactor_for
from aiserver.doors.listen import bind
from aiserver.kit import log
from aiserver.kit.clock import SystemClock
from aiserver.kit.lock import exclusive
from aiserver.kit.redact import Redactor
from aiserver.kit.workers import Workers
from aiserver.providers.local.weights import WEIGHTS, WeightUnavailable
from aiserver.rooms import open_rooms

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
        run(settings, sockets=sockets, announce=lambda secret: _announce(url, secret))


def run(
    settings: s.Settings,
    *,
    sockets: list[socket.socket],
    announce: Callable[[str | None], None],
) -> None:
    """Runs a server until it is stopped. `announce` gets the admin secret if one was made."""
    redact = redactor_for(settings)
    log.configure(level=settings[s.LOG_LEVEL], form=settings[s.LOG_FORMAT], redact=redact)
    with exclusive(data_folder(settings) / "server.lock"):
        made = uvloop.run(_prepared(settings, redact))
        if settings[s.WORKERS] == 1:
            uvloop.run(_serving(settings, redact, sockets, lambda: announce(made)))
            return
        workers = Workers(
            settings[s.WORKERS],
            work,
            (settings, sockets),
            grace=settings[s.SHUTDOWN_GRACE],
        )
        workers.run(lambda: announce(made))


def work(
    number: int, ready: Callable[[], None], settings: s.Settings, sockets: list[socket.socket]
) -> None:
    """One of several processes of a server."""
    redact = redactor_for(settings)
    log.configure(
        level=settings[s.LOG_LEVEL], form=settings[s.LOG_FORMAT], redact=redact, worker=number
    )
    with reported():
        uvloop.run(_serving(settings, redact, sockets, ready, worker=number))


async def _prepared(settings: s.Settings, redact: Redactor) -> str | None:
    """Migrates the database before anything listens; the admin secret if one was made."""
    data = await open_data(settings, SystemClock(), redact, lean=True)
    try:
        return None if settings.get(s.AUTH_SECRET) else await data.secret.create()
    finally:
        await data.close()


async def _serving(
    settings: s.Settings,
    redact: Redactor,
    sockets: list[socket.socket],
    ready: Callable[[], None],
    *,
    worker: int = 1,
) -> None:
    clock = SystemClock()
    data = await open_data(settings, clock, redact, lean=True, worker=worker)
    try:
        async with open_rooms(settings, data) as rooms:
            app = App(settings, data, redact, clock, rooms=rooms)
            await app.run(sockets, ready)
    finally:
        await data.close()


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

"""ai-server models: the weights of the embedded default."""

from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from aiserver import settings as s
from aiserver.cli.console import CommandError, note, reported, say, show, table
from aiserver.cli.options import DataFlag, FileFlag, JsonFlag, load
from aiserver.providers.local import weights
from aiserver.providers.local.weights import WEIGHTS, Weight, WeightStore, WeightUnavailable

commands = typer.Typer(help="Weights of the embedded models.", no_args_is_help=True)


@commands.command("list")
def list_models(data: DataFlag = None, config: FileFlag = None, as_json: JsonFlag = False) -> None:
    """Lists the embedded models and which are on this machine."""
    with reported():
        store = store_for(load(data, config))
    rows = [
        {
            "id": weight.id,
            "present": store.path(weight) is not None,
            "megabytes": round(weight.size_bytes / 1e6),
            "licence": weight.licence,
            "description": weight.description,
        }
        for weight in WEIGHTS
    ]
    if as_json:
        show(rows)
        return
    columns = {
        "id": "Model",
        "present": "Here",
        "megabytes": "MB",
        "licence": "Licence",
        "description": "What it is",
    }
    table(rows, columns, empty="There are no embedded models.")


@commands.command("pull")
def pull(
    model: Annotated[
        list[str] | None, typer.Argument(help="Models to fetch; all embedded ones without it.")
    ] = None,
    data: DataFlag = None,
    config: FileFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Fetches weights, checks them and says from where; what is here already is left alone."""
    with reported():
        store = store_for(load(data, config))
        wanted = [_named(name) for name in model] if model else list(WEIGHTS)
        try:
            paths = {weight.id: str(fetch(store, weight)) for weight in wanted}
        except WeightUnavailable as error:
            raise CommandError(str(error)) from None
    if as_json:
        show(paths)
    else:
        for name, path in paths.items():
            say(f"{name} is in {path}")


def store_for(settings: s.Settings) -> WeightStore:
    return WeightStore(settings[s.APP_DATA] / "models", settings.get(s.MODELS_URL))


def fetch(store: WeightStore, weight: Weight) -> object:
    """The weight's path, after a download with a progress bar if it was not there."""
    present = store.path(weight)
    if present is not None:
        return present
    note(f"Fetching {weight.id} ({weight.size_bytes / 1e6:.0f} MB) ...")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task(weight.id, total=weight.size_bytes)

        def progress(at: weights.Progress) -> None:
            shown.update(task, completed=at.received, description=f"{weight.id} from {at.source}")

        return store.pull(weight, progress)


def _named(name: str) -> Weight:
    for weight in WEIGHTS:
        if name in (weight.id, "local"):
            return weight
    raise CommandError(f"Unknown model {name!r}; embedded: {', '.join(w.id for w in WEIGHTS)}.")

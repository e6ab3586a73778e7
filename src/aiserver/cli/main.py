"""The command `ai-server`: joins the commands of every room."""

import typer

from aiserver import __version__
from aiserver import settings as s
from aiserver.cli import files, jobs, keys, models, providers
from aiserver.cli.console import reported, say, show, table
from aiserver.cli.doctor import doctor
from aiserver.cli.options import DataFlag, FileFlag, JsonFlag, load
from aiserver.cli.serve import serve, settings_help

app = typer.Typer(
    name="ai-server",
    help="One URL and one key for every AI an organisation has.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
config_commands = typer.Typer(help="The settings in force.", no_args_is_help=True)
app.add_typer(keys.commands, name="keys")
app.add_typer(providers.commands, name="providers")
app.add_typer(models.commands, name="models")
app.add_typer(jobs.commands, name="jobs")
app.add_typer(files.commands, name="files")
app.add_typer(config_commands, name="config")
app.command("serve", help=settings_help())(serve)
app.command("doctor")(doctor)


@app.command("version")
def version(as_json: JsonFlag = False) -> None:
    """Prints the version."""
    if as_json:
        show({"version": __version__})
    else:
        say(f"ai-server {__version__}")


@config_commands.command("check")
def check(data: DataFlag = None, config: FileFlag = None, as_json: JsonFlag = False) -> None:
    """Reads every setting as the server would, shows where each comes from, starts nothing."""
    with reported():
        settings = load(data, config)
    rows = [{"name": n, "value": v or None, "from": source} for n, v, source in settings.shown()]
    if as_json:
        show(rows)
        return
    table(rows, {"name": "Setting", "value": "Value", "from": "From"}, empty="No settings.")
    unlisted = [setting.name for setting in s.SETTINGS if settings.get(setting) is None]
    say(f"The settings are usable; {len(unlisted)} are not set.")


def main() -> None:
    app()

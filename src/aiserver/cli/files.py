"""ai-server files: what is kept and the links to it, beside a running server or without one."""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

from aiserver.cli.console import CommandError, note, reported, say, show, table
from aiserver.cli.jobs_named import key_named, names_of
from aiserver.cli.options import DataFlag, FileFlag, JsonFlag
from aiserver.cli.session import with_data
from aiserver.contract.errors import StorageUnavailable
from aiserver.data import Data
from aiserver.files.artifacts import KINDS, Artifact
from aiserver.files.checkup import MISSING, checked
from aiserver.files.signing import MOST_SECRETS, SignedUrls
from aiserver.files.table import AT_ONCE
from aiserver.kit.clock import SystemClock

T = TypeVar("T")
commands = typer.Typer(help="Kept files: list, delete, check; links to them.", no_args_is_help=True)
_COLUMNS = {
    "path": "Path",
    "kind": "Kind",
    "key": "Key",
    "size": "Bytes",
    "contentType": "Type",
    "created": "Created",
    "name": "Name",
}
_PREFIXES = ("artifacts/", "uploads/", "files/")


@commands.command("list")
def list_files(
    key: Annotated[
        str | None, typer.Option(help="Only of this API key: its id or name, admin for none.")
    ] = None,
    kind: Annotated[str | None, typer.Option(help=f"Only {', '.join(KINDS)}.")] = None,
    contains: Annotated[
        str | None, typer.Option(help="Only with this in the name or path.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=AT_ONCE, help="At most so many.")] = 50,
    data: DataFlag = None,
    config: FileFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Lists kept files, the newest first."""

    async def rows(opened: Data) -> tuple[list[dict[str, Any]], int]:
        names = await names_of(opened)
        if kind not in (None, *KINDS):
            raise CommandError(f"--kind {kind}: use {', '.join(KINDS)}.")
        found, total = await opened.artifacts.list(
            key_id=key_named(names, key), kind=kind, contains=contains, take=limit
        )
        return [_listed(each, names) for each in found], total

    found, total = _with_files(data, config, rows)
    if as_json:
        show(found)
        return
    asked = key or kind or contains
    table(found, _COLUMNS, empty="No such files." if asked else "No files are kept.")
    if total > len(found):
        note(f"{len(found)} of {total} files; --limit shows more.")


@commands.command("delete")
def delete(
    path: Annotated[list[str], typer.Argument(metavar="PATH...", help="Paths of files.")],
    data: DataFlag = None,
    config: FileFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Deletes files, whosever they are."""

    async def deleted(opened: Data) -> tuple[list[str], list[str]]:
        done: list[str] = []
        missing: list[str] = []
        for word in dict.fromkeys(path):
            found = await opened.artifacts.find(_bare(word))
            if found is not None:
                await opened.artifacts.delete([found])
            (missing if found is None else done).append(word)
        return done, missing

    done, missing = _with_files(data, config, deleted)
    if as_json:
        show({"deleted": done, "missing": missing})
    else:
        say(f"{_counted(len(done))} deleted.")
        with reported():
            if missing:
                raise CommandError(
                    f"{', '.join(missing[:10])}: there is no such file. `ai-server files list` "
                    "shows them."
                )
    if missing:
        raise typer.Exit(1)


@commands.command("verify")
def verify(
    quick: Annotated[bool, typer.Option("--quick", help="Sizes only, without reading.")] = False,
    forget: Annotated[
        bool, typer.Option("--forget-missing", help="Deletes the rows of files that are gone.")
    ] = False,
    data: DataFlag = None,
    config: FileFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Reads every kept file and compares it with its checksum; exits with 1 when one differs."""

    async def compared(opened: Data) -> tuple[int, list[dict[str, Any]]]:
        _, size = await opened.shelf.table.all()
        count, problems, gone = 0, list[dict[str, Any]](), list[str]()
        with _progress(hidden=as_json) as progress:
            task = progress.add_task("", total=size)
            async for file, problem in checked(opened.shelf, quick=quick):
                count += 1
                progress.advance(task, file.size)
                if problem is not None:
                    problems.append({"path": file.shown, "kind": file.kind, "problem": problem})
                if problem == MISSING:
                    gone.append(file.id)
        if forget:
            await opened.shelf.delete(gone)
        return count, problems

    count, problems = _with_files(data, config, compared)
    if as_json:
        show({"checked": count, "problems": problems})
    else:
        _tell(count, problems, forget=forget)
    if problems:
        raise typer.Exit(1)


@commands.command("rotate-signing")
def rotate_signing(
    revoke: Annotated[
        bool, typer.Option("--revoke", help="Closes every link from before: a secret leaked.")
    ] = False,
    data: DataFlag = None,
    config: FileFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Signs links to files with a new secret, beside a server too; earlier links go on."""

    async def rotated(opened: Data) -> int:
        urls = SignedUrls(opened.engine.tables, SystemClock(), ttl=0)
        return await urls.rotate(keep=0 if revoke else MOST_SECRETS - 1)

    earlier = _with_files(data, config, rotated)
    if as_json:
        show({"rotated": True, "earlierSecrets": earlier})
        return
    say("Links are signed with a new secret from now on.")
    if revoke:
        note("Links from before open nothing any more; ask for results again to get new ones.")
    else:
        note(
            "Links from before go on until they expire, or until this was done "
            f"{MOST_SECRETS - 1} times more. --revoke closes them at once."
        )


def _tell(count: int, problems: Sequence[dict[str, Any]], *, forget: bool) -> None:
    columns = {"path": "Path", "kind": "Kind", "problem": "Problem"}
    table(problems, columns, empty=f"{_counted(count)} checked; all are as they were stored.")
    if not problems:
        return
    note(f"{len(problems)} of {_counted(count)} are not as they were stored.")
    if forget:
        note("Those that were missing are forgotten.")
    else:
        note("Bring them back from a backup; --forget-missing gives up those that are missing.")


def _with_files(data: Path | None, file: Path | None, work: Callable[[Data], Awaitable[T]]) -> T:
    with reported():
        try:
            return with_data(data, file, work)
        except StorageUnavailable as error:
            raise CommandError(str(error)) from error


def _progress(*, hidden: bool) -> Progress:
    """On stderr, and only where somebody watches."""
    console = Console(stderr=True)
    return Progress(
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=hidden or not console.is_terminal,
    )


def _listed(file: Artifact, names: dict[int, str]) -> dict[str, Any]:
    return {
        "path": file.path,
        "kind": file.kind,
        "key": names.get(file.key_id, str(file.key_id)),
        "size": file.size,
        "contentType": file.content_type,
        "created": file.created.isoformat(timespec="seconds"),
        "name": file.name,
        "operation": file.operation,
        "jobId": file.job_id,
        "expires": file.expires and file.expires.isoformat(timespec="seconds"),
    }


def _bare(word: str) -> str:
    """As it is in the table, whichever address it was copied from."""
    path = word.removeprefix("/")
    for prefix in _PREFIXES:
        path = path.removeprefix(prefix)
    return path


def _counted(count: int) -> str:
    return f"{count} {'file' if count == 1 else 'files'}"

"""ai-server jobs: look after queued calls, beside a running server or without one."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from aiserver.cli.console import CommandError, note, reported, say, show, table
from aiserver.cli.jobs_follow import follow_job
from aiserver.cli.jobs_named import (
    cancel_named,
    find_named,
    key_named,
    names_of,
    requeue_named,
    states_named,
    with_jobs,
)
from aiserver.cli.jobs_view import (
    COLUMNS,
    content,
    details,
    for_people,
    full,
    listed,
    say_stats,
    stats_of,
)
from aiserver.cli.options import DataFlag, FileFlag, JsonFlag
from aiserver.data import Data
from aiserver.jobs.job import Job, State
from aiserver.jobs.store import MOST_ROWS, DeliveryFilter, Filter, JobStore
from aiserver.jobs.worker import HEARTBEAT_SECONDS

commands = typer.Typer(help="Queued calls: see, follow, cancel, try again.", no_args_is_help=True)

JobArgument = Annotated[str, typer.Argument(metavar="ID|REFID", help="A job's id or refId.")]
JobsArgument = Annotated[list[str], typer.Argument(metavar="ID...", help="Ids or refIds of jobs.")]


@commands.command("list")
def list_jobs(
    state: Annotated[
        list[str] | None,
        typer.Option(help="Queued, Started, Completed, Failed or Cancelled; repeatable."),
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="Only of this API key: its id or name, admin for none.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=MOST_ROWS, help="At most so many.")] = 50,
    data: DataFlag = None,
    config: FileFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Lists jobs, the newest first, those of the archive too."""

    async def rows(opened: Data, store: JobStore) -> tuple[list[dict[str, Any]], int]:
        names = await names_of(opened)
        wanted = Filter(states=states_named(state), key_id=key_named(names, key), take=limit)
        found, total = await store.summaries(wanted)
        return [listed(job, names) for job in found], total

    with reported():
        found, total = with_jobs(data, config, rows)
    if as_json:
        show(found)
        return
    asked = state or key
    empty = "No such jobs." if asked else "No jobs yet. Any chat can be queued: docs/jobs.md"
    table([for_people(row) for row in found], COLUMNS, empty=empty)
    if total > len(found):
        note(f"{len(found)} of {total} jobs; --limit shows more.")


@commands.command("show")
def show_job(
    job: JobArgument,
    with_content: Annotated[
        bool, typer.Option("--content", help="What was asked and answered, too.")
    ] = False,
    data: DataFlag = None,
    config: FileFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Shows all that is known of one job, and of its callbacks."""

    async def members(opened: Data, store: JobStore) -> tuple[Job, dict[str, Any]]:
        found = await find_named(store, job)
        wanted = DeliveryFilter(job_id=found.id)
        sent, _ = await opened.engine.outbox().deliveries(wanted)
        position = await store.position(found.id)
        return found, full(found, await names_of(opened), position=position, callbacks=sent)

    with reported():
        found, row = with_jobs(data, config, members)
    if as_json:
        show({**row, **content(found)} if with_content else row)
        return
    for line in details(row):
        say(line)
    if with_content:
        for name, body in content(found).items():
            say(f"\n{name}:")
            show(body)


@commands.command("follow")
def follow(
    job: JobArgument, data: DataFlag = None, config: FileFlag = None, as_json: JsonFlag = False
) -> None:
    """Tells of every change of a job until it ends; exits with 1 unless it completes."""

    async def until_ended(_: Data, store: JobStore) -> Job:
        return await follow_job(store, (await find_named(store, job)).id, as_json=as_json)

    with reported():
        ended = with_jobs(data, config, until_ended)
    if ended.state is not State.COMPLETED:
        raise typer.Exit(1)


@commands.command("cancel")
def cancel(
    job: JobsArgument,
    data: DataFlag = None,
    config: FileFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Cancels jobs that wait, and tells those that run to stop."""
    with reported():
        done, told, errors = with_jobs(data, config, lambda _, store: cancel_named(store, job))
    if as_json:
        show({"cancelled": done, "told": told, "errors": errors})
    else:
        for id in done:
            say(f"Job {id} cancelled.")
        for id in told:
            say(f"Job {id} runs; its server stops it within {HEARTBEAT_SECONDS:.0f} seconds.")
    _fail_for(errors, as_json)


@commands.command("retry", hidden=True)
@commands.command("requeue")
def requeue(
    job: Annotated[
        list[str] | None, typer.Argument(metavar="[ID...]", help="Ids or refIds of jobs.")
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="All that failed.")] = False,
    data: DataFlag = None,
    config: FileFlag = None,
    as_json: JsonFlag = False,
) -> None:
    """Puts failed or cancelled jobs back into the queue, with all their attempts."""
    with reported():
        if bool(job) == failed:
            raise CommandError("Name the jobs to queue again, or give --failed for all that did.")
        done, errors = with_jobs(data, config, lambda _, store: requeue_named(store, job or []))
    if as_json:
        show({"queued": done, "errors": errors})
    elif not done and not errors:
        say("No job has failed.")
    else:
        say(f"{len(done)} {'job' if len(done) == 1 else 'jobs'} queued again.")
    _fail_for(errors, as_json)


@commands.command("stats")
def stats(data: DataFlag = None, config: FileFlag = None, as_json: JsonFlag = False) -> None:
    """Counts what waits, what runs, and what ended in the last 24 hours."""

    async def counted(opened: Data, store: JobStore) -> dict[str, Any]:
        return await stats_of(store, await names_of(opened))

    with reported():
        found = with_jobs(data, config, counted)
    if as_json:
        show(found)
    else:
        say_stats(found)


def _fail_for(errors: Mapping[str, str], as_json: bool) -> None:
    """Exit code 1 where something could not be done, and why, once for each reason."""
    if not errors:
        return
    if not as_json:
        reasons: dict[str, list[str]] = {}
        for word, why in errors.items():
            reasons.setdefault(why, []).append(word)
        with reported():
            told = [f"{_some(words)}: {why}" for why, words in reasons.items()]
            raise CommandError(" ".join(told))
    raise typer.Exit(1)


def _some(words: list[str]) -> str:
    more = len(words) - 10
    return ", ".join(words[:10]) + (f" and {more} more" if more > 0 else "")

"""Finds the jobs that the command line names, and changes them, also while a server runs."""

from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TypeVar

from aiserver.cli.console import CommandError
from aiserver.cli.options import load
from aiserver.cli.session import with_data
from aiserver.data import Data
from aiserver.jobs.callbacks import Callbacks
from aiserver.jobs.job import LARGEST_ID, Job, State
from aiserver.jobs.reply_to import ReplyAddresses
from aiserver.jobs.store import MOST_ROWS, CancelOutcome, Filter, JobStore
from aiserver.kit.outbound import Outbound
from aiserver.work.terms import terms_of

T = TypeVar("T")
_ADMIN_KEY = 0
_LONGEST_ID = len(str(LARGEST_ID))


def with_jobs(
    data: Path | None, file: Path | None, work: Callable[[Data, JobStore], Awaitable[T]]
) -> T:
    """Runs `work` on the jobs, also while a server works on them."""
    settings = load(data, file)
    terms = terms_of(settings)
    addresses = ReplyAddresses(Outbound(terms.guard), own=terms.own)

    async def run(opened: Data) -> T:
        store = opened.engine.jobs(terms.bounds, Callbacks(addresses).of)
        try:
            await store.begin()
            return await work(opened, store)
        finally:
            await store.close()

    return with_data(data, file, run)


async def cancel_named(
    store: JobStore, words: Iterable[str]
) -> tuple[list[int], list[int], dict[str, str]]:
    """The jobs that are cancelled, those that were told to stop, and why others are not."""
    ids, errors = await _ids(store, words)
    outcomes: dict[int, CancelOutcome] = {}
    for some in _rounds(ids):
        outcomes |= (await store.cancel(some)).outcomes
    by: dict[CancelOutcome, list[int]] = {outcome: [] for outcome in CancelOutcome}
    for id, outcome in sorted(outcomes.items()):
        by[outcome].append(id)
    errors |= {str(id): "It has ended and stays as it is." for id in by[CancelOutcome.ENDED]}
    return by[CancelOutcome.CANCELLED], by[CancelOutcome.ASKED], errors


async def requeue_named(store: JobStore, words: list[str]) -> tuple[list[int], dict[str, str]]:
    """All that failed where there are no words."""
    ids, errors = await _ids(store, words) if words else (await _failed(store), {})
    done: list[int] = []
    for some in _rounds(ids):
        result = await store.requeue(some)
        done += result.ids
        errors |= {str(id): why for id, why in result.errors.items()}
    return done, errors


async def _failed(store: JobStore) -> list[int]:
    """All are found before one is queued: it may fail again meanwhile."""
    ids: list[int] = []
    total = 1
    while len(ids) < total:
        wanted = Filter(states=[State.FAILED], descending=False, skip=len(ids), take=MOST_ROWS)
        found, total = await store.summaries(wanted)
        if not found:
            break
        ids += [job.id for job in found]
    return ids


async def find_named(store: JobStore, word: str) -> Job:
    ids, errors = await _ids(store, [word])
    job = await store.find(id=ids[0]) if ids else None
    if job is None:
        why = errors.get(word, "There is no such job.")
        raise CommandError(f"{word}: {why} `ai-server jobs list` shows them.")
    return job


async def _ids(store: JobStore, words: Iterable[str]) -> tuple[list[int], dict[str, str]]:
    """What the words name, each once, and why some name nothing."""
    ids: list[int] = []
    errors: dict[str, str] = {}
    for word in dict.fromkeys(words):
        found = await _named(store, word)
        if len(found) == 1:
            ids += found
        elif found:
            several = ", ".join(map(str, found))
            errors[word] = f"Several keys have a job of this refId: {several}. Give the id."
        else:
            errors[word] = "There is no such job."
    return list(dict.fromkeys(ids)), errors


async def _named(store: JobStore, word: str) -> list[int]:
    if _is_id(word):
        found, _ = await store.summaries(Filter(ids=[int(word)]))
        if found:
            return [found[0].id]
    found, _ = await store.summaries(Filter(ref_ids=[word], descending=False))
    return [job.id for job in found]


def _is_id(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) <= _LONGEST_ID


def _rounds(ids: list[int]) -> Iterable[list[int]]:
    return (ids[at : at + MOST_ROWS] for at in range(0, len(ids), MOST_ROWS))


async def names_of(opened: Data) -> dict[int, str]:
    return {_ADMIN_KEY: "admin", **{key.id: key.name for key in await opened.keys.all()}}


def key_named(names: dict[int, str], sought: str | None) -> int | None:
    """A key that is deleted may still have jobs, so any number is one."""
    if sought is None:
        return None
    found = [id for id, name in names.items() if name == sought]
    if len(found) > 1:
        raise CommandError(f"{sought!r} means several keys: {', '.join(map(str, found))}.")
    if found:
        return found[0]
    if _is_id(sought):
        return int(sought)
    raise CommandError(f"There is no key {sought!r}. `ai-server keys list` shows them.")


def states_named(words: list[str] | None) -> list[State] | None:
    if not words:
        return None
    known = {state.shown.lower(): state.shown for state in State}
    for word in words:
        if word.lower() not in known:
            raise CommandError(f"--state {word}: use {', '.join(known.values())}.")
    wanted = {known[word.lower()] for word in words}
    return [state for state in State if state.shown in wanted]

"""ai-server doctor: tries everything that is configured; says what is wrong and how to mend it."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec
import typer
from rich.console import Console

from aiserver import settings as s
from aiserver.cli import postgres_check, storage_check
from aiserver.cli.checks import CHECKS, FAILED, OF_SQLITE, WARNING, Check, Finding, Installation
from aiserver.cli.console import say, show, table
from aiserver.cli.installation import opened
from aiserver.cli.options import DataFlag, FileFlag, JsonFlag, load
from aiserver.cli.provider_checks import Asked, ProviderChecks
from aiserver.kit.redact import Redactor

SECONDS = 10.0

_COLUMNS = {"name": "Check", "state": "State", "found": "Found", "do": "What to do"}


def doctor(data: DataFlag = None, config: FileFlag = None, as_json: JsonFlag = False) -> None:
    """Tries everything that is configured, says what is wrong and how to mend it."""
    findings = _findings(data, config)
    rows = [msgspec.structs.asdict(finding) for finding in findings]
    failed = [finding for finding in findings if finding.state == FAILED]
    if as_json:
        show(rows)
    else:
        table([row | {"do": row["do"] or None} for row in rows], _COLUMNS, empty="No checks.")
        warned = sum(finding.state == WARNING for finding in findings)
        say(f"{len(findings)} checks: {len(failed)} failed, {warned} with a warning.")
    if failed:
        raise typer.Exit(1)


def _findings(data: Path | None, config: Path | None) -> list[Finding]:
    redact = Redactor()
    try:
        settings = load(data, config)
    except s.SettingError as error:
        do = "Correct it; nothing else can be checked before."
        return [Finding("settings", FAILED, redact(str(error)), do)]
    for setting in s.SETTINGS:
        value = settings.get(setting)
        if isinstance(value, s.Secret):
            redact.learn(value.reveal())
    found = asyncio.run(_examined(settings, redact))
    return [
        msgspec.structs.replace(finding, found=redact(finding.found), do=redact(finding.do))
        for finding in found
    ]


async def _examined(settings: s.Settings, redact: Redactor) -> list[Finding]:
    async with opened(settings, redact) as at:
        return await examine(at, redact.learn)


async def examine(
    at: Installation, learn: Callable[[str], None], *, seconds: float = SECONDS
) -> list[Finding]:
    """Every check at once; one that crashes or takes longer than `seconds` is its own finding."""
    providers = ProviderChecks(at, learn)
    shared = at.settings.get(s.DATABASE_URL) is not None
    asked: list[Asked] = [
        (name, partial(_apart, check, at))
        for name, check in CHECKS.items()
        if not (shared and name in OF_SQLITE)
    ]
    if shared:
        asked.append(("database", partial(postgres_check.database, at)))
    asked.append(_of_storage(at))
    asked += providers.all()
    done = 0
    with Console(stderr=True).status("Checking ...") as status:

        async def one(name: str, ask: Callable[[], Awaitable[Finding]]) -> Finding:
            nonlocal done
            finding = await _guarded(name, ask, seconds)
            done += 1
            status.update(f"Checked {done} of {len(asked)} ...")
            return finding

        try:
            return list(await asyncio.gather(*(one(name, ask) for name, ask in asked)))
        finally:
            await providers.close()


def _of_storage(at: Installation) -> Asked:
    if at.settings.get(s.STORAGE_URL) is not None:
        return storage_check.NAME, partial(storage_check.store, at)
    return storage_check.NAME, partial(_apart, storage_check.folders, at)


async def _guarded(name: str, ask: Callable[[], Awaitable[Finding]], seconds: float) -> Finding:
    try:
        async with asyncio.timeout(seconds):
            return await ask()
    except TimeoutError:
        return Finding(
            name, FAILED, f"gave no answer in {seconds:g} s", "Try again; then look why."
        )
    except Exception as error:  # a check that breaks must not keep the others from speaking
        return Finding(name, FAILED, f"{type(error).__name__}: {error}", "Report this as a bug.")


async def _apart(check: Check, at: Installation) -> Finding:
    # A thread that nobody waits for at the end: a dead network disk holds it for ever.
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Finding] = loop.create_future()

    def settle(finding: Finding | None, error: BaseException | None) -> None:
        if answer.done():
            return
        if finding is not None:
            answer.set_result(finding)
        elif error is not None:
            answer.set_exception(error)

    def run() -> None:
        finding: Finding | None = None
        problem: Exception | None = None
        try:
            finding = check(at)
        except Exception as error:  # handed to the loop, where it becomes a finding
            problem = error
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, finding, problem)

    threading.Thread(target=run, daemon=True).start()
    return await answer

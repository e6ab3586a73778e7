"""ai-server doctor: tries everything that is configured; says what is wrong and how to mend it."""

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import typer
from rich.console import Console

from aiserver import settings as s
from aiserver.cli.checks import CHECKS, FAILED, WARNING, Check, Finding, Installation
from aiserver.cli.console import say, show, table
from aiserver.cli.options import DataFlag, FileFlag, JsonFlag, load
from aiserver.cli.provider_checks import Asked, ProviderChecks
from aiserver.kit.clock import SystemClock
from aiserver.kit.crypto import KEY_BYTES, Cipher, EncryptionKeyError, KeyFile, parse_key
from aiserver.kit.db import Database, StorageError
from aiserver.kit.redact import Redactor
from aiserver.providers.store import Provider, ProviderStore

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
    with opened(settings, redact) as at:
        found = asyncio.run(examine(at, redact.learn))
    return [
        msgspec.structs.replace(finding, found=redact(finding.found), do=redact(finding.do))
        for finding in found
    ]


@contextmanager
def opened(settings: s.Settings, redact: Redactor) -> Generator[Installation]:
    """The installation as it is: nothing is made, migrated or mended."""
    folder = settings[s.APP_DATA]
    with ExitStack() as stack:
        database, database_problem = _database(folder)
        if database is not None:
            stack.callback(database.close)
        cipher, key_problem = _cipher(settings, folder)
        kept = database or _nothing_kept(stack)
        store = ProviderStore(kept, cipher, SystemClock(), redact.learn)
        yield Installation(
            settings=settings,
            folder=folder,
            database=database,
            database_problem=database_problem,
            store=store,
            key_problem=key_problem,
            providers=_providers(store) if database is not None else (),
        )


def _database(folder: Path) -> tuple[Database | None, str]:
    path = folder / "app.db"
    try:
        return (Database.open(path) if path.exists() else None), ""
    except (OSError, StorageError) as error:
        return None, str(error)


def _nothing_kept(stack: ExitStack) -> Database:
    """An empty database elsewhere: providers of the environment can be asked without one."""
    folder = stack.enter_context(TemporaryDirectory())
    database = Database.open(Path(folder) / "app.db")
    stack.callback(database.close)
    return database


def _cipher(settings: s.Settings, folder: Path) -> tuple[Cipher, str]:
    given, path = settings.get(s.ENCRYPTION_KEY), folder / "encryption.key"
    problem = ""
    try:
        if given is not None:
            return Cipher(parse_key(given.reveal())), ""
        # Reading a file that is not there would make one, and hide that it was lost.
        if path.is_file():
            return Cipher(*KeyFile(path).keys()), ""
    except (OSError, EncryptionKeyError, ValueError) as error:
        problem = str(error)
    return Cipher(os.urandom(KEY_BYTES)), problem


def _providers(store: ProviderStore) -> tuple[Provider, ...]:
    try:
        return tuple(store.all())
    except StorageError:
        # A schema before its migration; the database's own row says so.
        return ()


async def examine(
    at: Installation, learn: Callable[[str], None], *, seconds: float = SECONDS
) -> list[Finding]:
    """Every check at once; one that crashes or takes longer than `seconds` is its own finding."""
    providers = ProviderChecks(at, learn)
    asked: list[Asked] = [(name, partial(_apart, check, at)) for name, check in CHECKS.items()]
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

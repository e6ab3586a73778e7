"""What `doctor` looks at on this machine: settings, data folder, database, port, engine, limits."""

import http.client
import io
import json
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import msgspec

from aiserver import settings as s
from aiserver.doors.listen import CannotListen, bind
from aiserver.kit import migrations
from aiserver.kit.crypto import EncryptionKeyError
from aiserver.kit.db import OLDEST_SQLITE, Database, driver
from aiserver.providers.local.engine import NATIVE_PACKAGE, native_package_installed
from aiserver.providers.local.weights import WEIGHTS, WeightStore
from aiserver.providers.models import Catalogue
from aiserver.providers.prices import Prices
from aiserver.providers.store import Provider, ProviderStore

if TYPE_CHECKING:
    from aiserver.kit.postgres import Postgres

OK, WARNING, FAILED = "ok", "warning", "failed"
NETWORK = frozenset(
    {"9p", "afs", "ceph", "cifs", "glusterfs", "lustre", "ncpfs", "nfs", "nfs4", "smb3", "smbfs"}
    | {"fuse.glusterfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs"}
)

_GIGABYTE = 10**9
_LEAST_FREE, _LITTLE_FREE = 0.2 * _GIGABYTE, 2 * _GIGABYTE
_FEW_FILES = 4096
# In half the time that a check has, even from a slow disk.
_MOST_LOOKED_THROUGH = 0.5 * _GIGABYTE
_ASK_SECONDS = 5.0


class Finding(msgspec.Struct, frozen=True):
    """What one check found, and what to do about it."""

    name: str
    state: Literal["ok", "warning", "failed"]
    found: str
    do: str = ""


class Installation(msgspec.Struct, frozen=True, kw_only=True):
    """What the checks look at; a problem says why there is no database, or no encryption key."""

    settings: s.Settings
    folder: Path
    database: Database | None
    postgres: "Postgres | None"
    database_problem: str
    store: ProviderStore
    key_problem: str
    providers: tuple[Provider, ...]


Check = Callable[[Installation], Finding]


def settings(at: Installation) -> Finding:
    sources = [source for _, value, source in at.settings.shown() if value]
    counted = ", ".join(
        f"{sources.count(source)} from {what}"
        for source, what in (
            ("flag", "flags"),
            ("environment", "the environment"),
            ("file", "file"),
        )
        if source in sources
    )
    return Finding("settings", OK, f"usable; {counted or 'all defaults'}")


def data_folder(at: Installation) -> Finding:
    name, folder = "data folder", at.folder
    if not folder.exists():
        return Finding(name, WARNING, f"{folder} is not there yet", "The first start makes it.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        do = "Give the server's user write access, or choose another folder: APP_DATA or --data."
        return Finding(name, FAILED, f"{folder} cannot be written: {error.strerror}", do)
    kind = file_system(folder.resolve(), _mounts())
    if kind in NETWORK and at.settings.get(s.DATABASE_URL) is None:
        do = "Put APP_DATA on a local disk: SQLite loses data on network file systems."
        return Finding(name, FAILED, f"{folder} is on the network file system {kind}", do)
    free = shutil.disk_usage(folder).free
    found = f"{folder} is writable; {free / _GIGABYTE:.1f} GB free"
    if free < _LITTLE_FREE:
        state = FAILED if free < _LEAST_FREE else WARNING
        return Finding(name, state, found, "Free some space, or move APP_DATA to a larger disk.")
    return Finding(name, OK, found)


def sqlite(at: Installation) -> Finding:
    found = f"SQLite {driver.sqlite_version}"
    if driver.sqlite_version_info < OLDEST_SQLITE:
        least = ".".join(map(str, OLDEST_SQLITE))
        return Finding("sqlite", FAILED, found, f"Use a Python whose SQLite is {least} or newer.")
    return Finding("sqlite", OK, found)


def database(at: Installation) -> Finding:
    name = "database"
    if at.database is None and not at.database_problem:
        return Finding(name, WARNING, "not there yet", "The first start makes it.")
    if at.database is None:
        return Finding(name, FAILED, at.database_problem, "Mend the file or restore a backup.")
    found, head = migrations.current(at.database), migrations.head()
    if found is not None and found > head:
        do = "Start the newer version, or restore a backup from before the upgrade."
        return Finding(name, FAILED, f"schema {found} is newer than this version's {head}", do)
    state = "too large to look through here"
    if at.database.path.stat().st_size <= _MOST_LOOKED_THROUGH:
        broken = [str(row[0]) for row in at.database.read("PRAGMA quick_check(3)")]
        if broken != ["ok"]:
            do = "Stop the server and restore a backup."
            return Finding(name, FAILED, f"damaged: {'; '.join(broken)}", do)
        state = "intact"
    if found != head:
        do = "The next start of the server migrates it."
        return Finding(name, WARNING, f"{state}; schema {found or 'none'}, wanted {head}", do)
    return Finding(name, OK, f"{state}; schema {found}")


def encryption_key(at: Installation) -> Finding:
    name, path = "encryption key", at.folder / "encryption.key"
    if at.key_problem:
        do = "Set ENCRYPTION_KEY or encryption.key to what it was."
        return Finding(name, FAILED, at.key_problem, do)
    kept = [provider for provider in at.providers if provider.api_key is not None]
    closed: list[str] = []
    for provider in kept:
        try:
            at.store.key_of(provider)
        except EncryptionKeyError:
            closed.append(provider.name)
    if closed:
        do = (
            "Restore the former key, or enter these anew: ai-server providers edit NAME --key-stdin"
        )
        return Finding(name, FAILED, f"does not open the keys of {', '.join(closed)}", do)
    found = f"opens {len(kept)} upstream keys" if kept else "no upstream key is kept yet"
    if path.is_file() and path.stat().st_mode & 0o077:
        return Finding(name, WARNING, f"{found}; others may read it", f"Run: chmod 600 {path}")
    return Finding(name, OK, found)


def port(at: Installation) -> Finding:
    host, number = at.settings[s.HOST], at.settings[s.PORT]
    try:
        for opened in bind(host, number):
            opened.close()
        return Finding("port", OK, f"{number} is free; no server runs on it")
    except CannotListen as error:
        problem = str(error)
    answer = _ready(host, number)
    if answer is None:
        return Finding("port", FAILED, problem, "Stop what listens there, or set another PORT.")
    if answer.get("status") == "ready":
        return Finding("port", OK, f"AI Server is ready on {number}")
    why = "; ".join(f"{part}: {reason}" for part, reason in answer.get("problems", {}).items())
    return Finding("port", FAILED, f"AI Server on {number} is not ready: {why}", "Read its log.")


def engine(at: Installation) -> Finding:
    name = "embedded model"
    if not at.settings[s.LOCAL_MODELS]:
        return Finding(name, OK, "switched off: LOCAL_MODELS=false")
    if not native_package_installed():
        do = "Install ai-server with its extra `local`, or set LOCAL_MODELS=false."
        return Finding(name, WARNING, f"{NATIVE_PACKAGE} is not installed", do)
    tried = subprocess.run(
        [sys.executable, "-c", f"import {NATIVE_PACKAGE}"],
        capture_output=True,
        text=True,
        timeout=_ASK_SECONDS * 1.5,
        check=False,
    )
    if tried.returncode != 0:
        said = tried.stderr.strip().rpartition("\n")[2] or f"exit code {tried.returncode}"
        do = "Install a build for this processor, or set LOCAL_MODELS=false."
        return Finding(name, FAILED, f"{NATIVE_PACKAGE} cannot be loaded: {said}", do)
    store = WeightStore(at.folder / "models", at.settings.get(s.MODELS_URL))
    if store.path(WEIGHTS[0]) is None:
        do = "Run: ai-server models pull"
        return Finding(name, WARNING, f"the weights of {WEIGHTS[0].id} are not here", do)
    return Finding(name, OK, f"{WEIGHTS[0].id} is here and can be loaded")


def overrides(at: Installation) -> Finding:
    folder = at.folder / "overrides"
    # The catalogue logs what it leaves aside; here the row says it.
    with redirect_stdout(io.StringIO()):
        problems = Catalogue(folder).problems | Prices(folder).problems
    if problems:
        found = "; ".join(f"{file}: {problem}" for file, problem in sorted(problems.items()))
        return Finding("overrides", FAILED, found, f"Correct the files in {folder}.")
    files = len(list(folder.glob("*.json")))
    return Finding("overrides", OK, f"{files} files, all usable" if files else "none")


def history(at: Installation) -> Finding:
    if at.settings.get(s.DATABASE_URL) is not None:
        return Finding("history", OK, "in PostgreSQL, beside the rest")
    files = [*at.folder.glob("history-*.db*"), *(at.folder / "history").glob("history-*.db*")]
    size = sum(file.stat().st_size for file in files)
    months = len([file for file in files if file.suffix == ".db"])
    kept = at.settings[s.HISTORY_MONTHS]
    keeps = f"keeps {kept}" if kept else "keeps all"
    return Finding("history", OK, f"{months} months, {size / 1e6:.1f} MB; {keeps}")


def limits(at: Installation) -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _FEW_FILES:
        do = "Raise it where the server starts: ulimit -n 65536, or LimitNOFILE=65536 for systemd."
        return Finding("limits", WARNING, f"{soft} open files and connections at most", do)
    return Finding("limits", OK, f"{'any number of' if soft < 0 else soft} open files")


CHECKS: dict[str, Check] = {
    "settings": settings,
    "data folder": data_folder,
    "sqlite": sqlite,
    "database": database,
    "encryption key": encryption_key,
    "port": port,
    "embedded model": engine,
    "overrides": overrides,
    "history": history,
    "limits": limits,
}
# Of no use on PostgreSQL.
OF_SQLITE = frozenset({"sqlite", "database"})


def file_system(path: Path, mounts: str) -> str:
    """The kind of the file system that holds a path, from lines as /proc/mounts has them."""
    held, kind = -1, ""
    for line in mounts.splitlines():
        words = line.split(" ")
        if len(words) < 3:
            continue
        mounted = Path(words[1].replace("\\040", " "))
        if path.is_relative_to(mounted) and len(mounted.parts) >= held:
            held, kind = len(mounted.parts), words[2]
    return kind


def _mounts() -> str:
    try:
        return Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _ready(host: str, number: int) -> dict[str, Any] | None:
    """What a server of ours on this port says of itself; None when another one is there."""
    address = {"localhost": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    connection = http.client.HTTPConnection(address, number, timeout=_ASK_SECONDS)
    try:
        connection.request("GET", "/health/ready")
        answer: object = json.loads(connection.getresponse().read(65536))
    except (OSError, ValueError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    if not isinstance(answer, dict):
        return None
    members = cast("dict[str, Any]", answer)
    return members if {"status", "local"} <= members.keys() else None

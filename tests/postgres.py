"""A real PostgreSQL for the tests, started at the first `server()` and ended with this process."""

import asyncio
import atexit
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from aiserver.kit.migrations.postgres import upgrade
from aiserver.kit.postgres import Postgres

_SECONDS = 30
_MODES = {"immediate": signal.SIGQUIT, "fast": signal.SIGINT}
_TEMPLATE = "migrated"
# The signal at a parent's death comes when the thread ends that began the child.
_SPAWNER = ThreadPoolExecutor(1, thread_name_prefix="postgres")
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "100",
    "shared_buffers": "64MB",
    "fsync": "off",
    "full_page_writes": "off",
    "autovacuum_naptime": "5s",
    "log_min_messages": "fatal",
}
# As a migration leaves it: `revisions` has rows from the beginning.
_EMPTY = """
DO $$
DECLARE name text;
BEGIN
  FOR name IN SELECT inhrelid::regclass FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE c.relkind = 'r' LOOP
    EXECUTE 'DROP TABLE ' || name;
  END LOOP;
  FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public'
    AND tablename NOT IN ('alembic_version', 'revisions') LOOP
    EXECUTE 'DELETE FROM ' || name;
  END LOOP;
  UPDATE revisions SET number = 0;
  FOR name IN SELECT sequencename FROM pg_sequences WHERE schemaname = 'public' LOOP
    EXECUTE 'ALTER SEQUENCE ' || name || ' RESTART';
  END LOOP;
END $$"""


class PostgresServer:
    """One cluster in a temporary folder, reached over loopback without a password."""

    def __init__(self, **settings: str) -> None:
        """`settings` are added to those of postgresql.conf, such as fsync="on"."""
        self._settings = {**_SETTINGS, **settings}
        self.folder = Path(tempfile.mkdtemp(prefix="aiserver-postgres-"))
        self._user = _unprivileged_user()
        self._names = 0
        self._migrated = False
        self._given_back: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)
        if self._user is not None:
            shutil.chown(self.folder, self._user)
        self._initdb()
        self.port = _free_port()
        self.start()

    @property
    def url(self) -> str:
        """The maintenance database; tests use a `fresh_database`."""
        return self.url_of("postgres")

    def url_of(self, name: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    def fresh_database(self, *, migrated: bool = True) -> str:
        """The URL of a new database, at the newest schema unless told otherwise."""
        if migrated and not self._migrated:
            self.execute(f"CREATE DATABASE {_TEMPLATE}")
            _run_apart(_migrate(self.url_of(_TEMPLATE)))
            self._migrated = True
        if migrated and self._given_back:
            name = self._given_back.pop()
            self.execute(_EMPTY, name=name)
            return self.url_of(name)
        self._names += 1
        name = f"test_{self._names}"
        template = _TEMPLATE if migrated else "template0"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url_of(name)

    def give_back(self, url: str) -> None:
        """For a `fresh_database` whose schema was left as it was: emptying beats creating."""
        self._given_back.append(url.rpartition("/")[2])

    def execute(self, sql: str, *, name: str = "postgres") -> str:
        """What psql prints, bare."""
        psql = [str(_binaries() / "psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql]
        command = [*psql, self.url_of(name)]
        return subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=_SECONDS
        ).stdout.strip()

    def restart(self, mode: Literal["immediate", "fast"] = "immediate") -> None:
        """`immediate` is a crash: connections are cut and the log is replayed."""
        self.stop(mode)
        self.start()

    def stop(self, mode: Literal["immediate", "fast"] = "immediate") -> None:
        if self._process is not None:
            self._process.send_signal(_MODES[mode])
            self._process.wait(_SECONDS)
            self._process = None

    def start(self) -> None:
        """Returns when it takes connections."""
        command = [str(_binaries() / "postgres"), "-D", str(self._data), "-p", str(self.port)]
        command += ["-k", str(self.folder)]
        for name, value in self._settings.items():
            command += ["-c", f"{name}={value}"]
        with (self.folder / "log").open("ab") as log:
            self._process = _SPAWNER.submit(
                subprocess.Popen[bytes],
                [*self._prefix(die_with_us=True), *command],
                stdout=log,
                stderr=log,
                cwd="/",
            ).result()
        ready = [str(_binaries() / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        until = time.monotonic() + _SECONDS
        while subprocess.run(ready, check=False).returncode != 0:
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError((self.folder / "log").read_text(errors="replace")[-4000:])
            time.sleep(0.01)

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _initdb(self) -> None:
        command = [str(_binaries() / "initdb"), "-D", str(self._data), "-U", "postgres"]
        command += ["-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions"]
        done = subprocess.run(
            [*self._prefix(), *command], capture_output=True, text=True, check=False, cwd="/"
        )
        if done.returncode != 0:
            raise RuntimeError(f"initdb failed: {done.stderr or done.stdout}")

    def _prefix(self, *, die_with_us: bool = False) -> list[str]:
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            return ["runuser", "-u", self._user, "--"] if self._user else []
        prefix = [setpriv]
        if self._user is not None:
            prefix += ["--reuid", self._user, "--regid", self._user, "--init-groups"]
        if die_with_us:
            # A test run that is killed cannot stop the server itself.
            prefix += ["--pdeathsig", "QUIT"]
        return prefix if len(prefix) > 1 else []


@lru_cache(maxsize=1)
def server() -> PostgresServer:
    """The one that all tests of this process share."""
    return PostgresServer()


def _binaries() -> Path:
    """The newest version's folder: Debian does not put the server on PATH."""
    found = list(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if found:
        return max(found, key=lambda path: int(path.parts[-3])).parent
    on_path = shutil.which("postgres")
    if on_path is None:
        raise RuntimeError("PostgreSQL is not installed. Run scripts/system.sh.")
    return Path(on_path).resolve().parent


def _unprivileged_user() -> str | None:
    # PostgreSQL refuses to run as root.
    if os.getuid() != 0:
        return None
    passwords = Path("/etc/passwd").read_text(encoding="utf-8")
    return "postgres" if "\npostgres:" in passwords else "nobody"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _migrate(url: str) -> None:
    database = await Postgres.open(url)
    try:
        await upgrade(database)
    finally:
        await database.close()


def _run_apart(work: Coroutine[Any, Any, None]) -> None:
    # A test that asks for a database usually runs inside a loop of its own.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()

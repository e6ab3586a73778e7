"""Brings a database to this version's schema before anything listens, or refuses."""

import os
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path

from aiserver.kit.db import Database, DriverError, StorageError, connect_for_migration, driver

_BACKUPS_KEPT = 3
VERSIONS = Path(__file__).parent / "versions"


def head() -> str:
    """The newest revision, by file name: 0001_what.py, 0002_what.py."""
    return max(path.name for path in VERSIONS.glob("[0-9]*.py")).split("_")[0]


def current(database: Database) -> str | None:
    """The revision of a database; None for an empty one."""
    if not database.read("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'"):
        return None
    rows = database.read("SELECT version_num FROM alembic_version")
    return str(rows[0][0]) if rows else None


def upgrade(database: Database, *, apart: bool = False) -> bool:
    """Whether anything changed. Raises StorageError; then the server must not start.

    A database that holds something is first copied to `backups/` beside it.

    `apart` runs the tools in a process of their own, so that a server does not keep their memory.
    """
    found, wanted = current(database), head()
    if found == wanted:
        return False
    if found is not None and found > wanted:
        raise StorageError(
            f"{database.path} is at schema {found}, newer than this version's {wanted}. "
            "Start the newer version, or restore a backup from before the upgrade."
        )
    if found is not None:
        backup(database, f"schema-{found}")
    if apart:
        _run_apart(database.path)
    else:
        run(database.path, wanted)
    return True


def backup(database: Database, name: str) -> Path:
    """A whole copy of what is committed, in `backups/` beside the file; the newest three stay.

    Raises StorageError; then there is no copy.
    """
    folder = database.path.parent / "backups"
    copy = folder / f"{database.path.stem}-{name}.db"
    part = copy.with_suffix(".part")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        part.unlink(missing_ok=True)
        part.touch(mode=0o600)
        with closing(connect_for_migration(database.path)) as connection:
            connection.execute("VACUUM INTO ?", (str(part),))
        _synced(part)
        part.replace(copy)
        for old in sorted(folder.glob("*.db"), key=_age)[_BACKUPS_KEPT:]:
            old.unlink()
    except (OSError, DriverError) as error:
        with suppress(OSError):
            part.unlink()
        raise StorageError(
            f"Cannot copy {database.path} to {folder} before its migration: {error}. "
            "Nothing was changed; free some space there."
        ) from error
    return copy


def _age(path: Path) -> float:
    return -path.stat().st_mtime


def _synced(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _run_apart(path: Path) -> None:
    command = [sys.executable, "-m", "aiserver.kit.migrations", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StorageError(f"Cannot migrate {path}: {done.stderr.strip()}")


def run(path: Path, revision: str) -> None:
    """As `upgrade`, whatever the file holds. Raises StorageError."""
    # Only here, because they cost memory that a process at its newest schema never needs.
    import sqlalchemy  # noqa: PLC0415
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415
    from sqlalchemy import event, exc  # noqa: PLC0415

    engine = sqlalchemy.create_engine(
        "sqlite://",
        module=driver,
        creator=lambda: connect_for_migration(path),
        poolclass=sqlalchemy.NullPool,
    )

    # The driver's own transactions leave DDL outside, so a failed upgrade would stay half done.
    @event.listens_for(engine, "begin")
    def _(connection: sqlalchemy.Connection) -> None:  # pyright: ignore[reportUnusedFunction]
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    try:
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
    except exc.DBAPIError as error:
        raise StorageError(f"Cannot migrate {path}: {error.orig}. Nothing was changed.") from error
    finally:
        engine.dispose()

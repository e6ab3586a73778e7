"""Upgrades one database in a process of its own: python -m aiserver.kit.migrations FILE."""

import sys
from pathlib import Path

from aiserver.kit.db import Database, StorageError
from aiserver.kit.migrations import upgrade


def main() -> int:
    try:
        database = Database.open(Path(sys.argv[1]))
        try:
            upgrade(database)
        finally:
            database.close()
    except StorageError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

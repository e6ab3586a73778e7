"""Upgrades one database in a process of its own: python -m aiserver.kit.migrations FILE."""

import sys
from pathlib import Path

from aiserver.kit.db import StorageError
from aiserver.kit.migrations import head, run


def main() -> int:
    try:
        run(Path(sys.argv[1]), head())
    except StorageError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The SQL of an upgrade for PostgreSQL: python -m aiserver.kit.migrations.script FROM TO."""

import io
import sys
from pathlib import Path


def postgres_script(found: str | None, wanted: str) -> str:
    """Statements from one revision, or from nothing, to another, without BEGIN and COMMIT."""
    # Only here, because they cost memory that a process at its newest schema never needs.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    written = io.StringIO()
    config = Config(output_buffer=written)
    config.set_main_option("script_location", str(Path(__file__).parent))
    command.upgrade(config, f"{found}:{wanted}" if found else wanted, sql=True)
    return written.getvalue()


if __name__ == "__main__":
    print(postgres_script(sys.argv[1] or None, sys.argv[2]))  # noqa: T201

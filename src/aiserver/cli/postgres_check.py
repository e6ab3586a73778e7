"""What `doctor` looks at in a PostgreSQL."""

from typing import TYPE_CHECKING

from aiserver.cli.checks import FAILED, OK, WARNING, Finding, Installation
from aiserver.kit import migrations

if TYPE_CHECKING:
    from aiserver.kit.postgres import Postgres

_NAME = "database"
_FACTS = """
SELECT current_setting('server_version'), current_database(),
  pg_size_pretty(pg_database_size(current_database())), pg_is_in_recovery()
"""


async def database(at: Installation) -> Finding:
    """Whether it answers, may be written, and has the schema that this version wants."""
    if at.postgres is None:
        do = "Start PostgreSQL, or correct DATABASE_URL."
        return Finding(_NAME, FAILED, at.database_problem, do)
    [(version, name, size, replica)] = await at.postgres.rows(_FACTS)
    found = f"PostgreSQL {version}, database {name}, {size}"
    if replica:
        do = "Point DATABASE_URL at the primary server."
        return Finding(_NAME, FAILED, f"{found}; a standby, which cannot be written", do)
    return await _schema(at.postgres, found)


async def _schema(database: "Postgres", found: str) -> Finding:
    from aiserver.kit.migrations.postgres import current  # noqa: PLC0415 - brings the driver

    schema, head = await current(database), migrations.head()
    if schema is not None and schema > head:
        do = "Start the newer version, or restore a backup from before the upgrade."
        return Finding(
            _NAME, FAILED, f"{found}; schema {schema} is newer than this version's {head}", do
        )
    if schema != head:
        do = "The next start of the server migrates it."
        return Finding(_NAME, WARNING, f"{found}; schema {schema or 'none'}, wanted {head}", do)
    return Finding(_NAME, OK, f"{found}; schema {schema}")

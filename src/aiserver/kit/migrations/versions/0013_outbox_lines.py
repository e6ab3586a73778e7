"""Callbacks that are due are found without a look at those that wait, and counted by key."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"

_PENDING = sa.text("state = 'Pending'")


def upgrade() -> None:
    # 0 while an attempt is under way, 1 when it was asked for again meanwhile.
    op.add_column("outbox", sa.Column("under_way", sa.Integer))
    op.drop_index("outbox_next", table_name="outbox")
    # All that choosing needs, so that the rows with their bodies are not read for it.
    _index("outbox_next", ["due", "id", "receiver", "key_id"])
    _index("outbox_key", ["key_id"])


def _index(name: str, columns: list[str]) -> None:
    op.create_index(name, "outbox", columns, sqlite_where=_PENDING, postgresql_where=_PENDING)

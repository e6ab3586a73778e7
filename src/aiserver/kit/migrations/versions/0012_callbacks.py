"""Callback secrets that still sign or whose key was deleted, and what the callback sink got."""

import sqlalchemy as sa
from alembic import op

from aiserver.kit.migrations.columns import BIG

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    # JSON: those before `previous`, each with the moment until which it signs.
    op.add_column("callback_secrets", sa.Column("older", sa.LargeBinary))
    # When its key was deleted, in milliseconds since 1970.
    op.add_column("callback_secrets", sa.Column("forgotten", BIG))
    op.create_table(
        "sunk_callbacks",
        sa.Column("ref_id", sa.Text, primary_key=True),
        # The newest has the largest.
        sa.Column("place", BIG, nullable=False),
    )
    op.create_index("sunk_callbacks_place", "sunk_callbacks", ["place"])

"""What each settled call used and cost, and sums by the day of what is older."""

import sqlalchemy as sa
from alembic import op

from aiserver.kit.migrations.columns import BIG

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "ledger",
        sa.Column("id", BIG, primary_key=True, autoincrement=False),
        sa.Column("at", BIG, nullable=False),
        sa.Column("key_id", sa.Integer),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("prompt_tokens", BIG),
        sa.Column("completion_tokens", BIG),
        sa.Column("cost", BIG),
        sa.Column("lost", sa.Integer, nullable=False),
    )
    # Nobody's calls have the key -1: sums are found by all four, and null is never found.
    op.create_table(
        "ledger_days",
        sa.Column("day", sa.Integer, primary_key=True),
        sa.Column("key_id", sa.Integer, primary_key=True),
        sa.Column("provider", sa.Text, primary_key=True),
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("calls", BIG, nullable=False),
        sa.Column("prompt_tokens", BIG, nullable=False),
        sa.Column("completion_tokens", BIG, nullable=False),
        sa.Column("cost", BIG, nullable=False),
        sa.Column("unknown", BIG, nullable=False),
        sa.Column("lost", BIG, nullable=False),
        sqlite_with_rowid=False,
    )

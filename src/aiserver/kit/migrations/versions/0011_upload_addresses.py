"""Signed addresses for uploads that were used, so that each takes one file."""

import sqlalchemy as sa
from alembic import op

from aiserver.kit.migrations.columns import BIG

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.create_table(
        "upload_addresses",
        sa.Column("id", sa.Text, primary_key=True),
        # Seconds since 1970, after which the address opens nothing and the row can go.
        sa.Column("expires", BIG, nullable=False),
    )
    op.create_index("upload_addresses_expires", "upload_addresses", ["expires"])

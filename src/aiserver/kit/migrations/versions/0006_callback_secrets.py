"""What each key's callbacks are signed with, encrypted."""

import sqlalchemy as sa
from alembic import op

from aiserver.kit.migrations.columns import BIG

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "callback_secrets",
        # The key's id, 0 for the administrator's secret, which is no row of api_keys.
        sa.Column("key_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("current", sa.LargeBinary, nullable=False),
        sa.Column("previous", sa.LargeBinary),
        # Milliseconds since 1970.
        sa.Column("rotated_at", BIG),
    )

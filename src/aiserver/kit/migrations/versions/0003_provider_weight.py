"""How much of the load a provider takes beside others."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("providers", sa.Column("weight", sa.Integer, nullable=False, server_default="1"))

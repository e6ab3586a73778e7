"""API keys, the administrator's secret, providers, and what tells other processes of a change."""

import sqlalchemy as sa
from alembic import op

from aiserver.kit.migrations.columns import BIG

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("hash", sa.LargeBinary, nullable=False, unique=True),
        sa.Column("visible", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("user_id", sa.Text),
        sa.Column("user_name", sa.Text),
        sa.Column("environment", sa.Text),
        sa.Column("created", sa.Text, nullable=False),
        sa.Column("expires", sa.Text),
        sa.Column("cancelled", sa.Text),
        sa.Column("last_used", sa.Text),
        sa.Column("notes", sa.Text),
        sa.Column("ref_id", BIG),
        sa.Column("ref_id_str", sa.Text),
        sa.Column("scopes", sa.Text, nullable=False, server_default="[]"),
        sa.Column("features", sa.Text, nullable=False, server_default="[]"),
        sa.Column("restrict_to", sa.Text, nullable=False, server_default="[]"),
        sa.Column("models", sa.Text, nullable=False, server_default="[]"),
        sa.Column("meta", sa.Text),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "secrets",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("salt", sa.LargeBinary, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sa.Column("created", sa.Text, nullable=False),
    )
    op.create_table(
        "providers",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("ai_type_id", sa.Text, nullable=False),
        sa.Column("api_base_url", sa.Text),
        sa.Column("api_key", sa.LargeBinary),
        sa.Column("api_key_var", sa.Text),
        sa.Column("api_key_header", sa.Text),
        sa.Column("heartbeat_url", sa.Text),
        sa.Column("task_paths", sa.Text),
        sa.Column("concurrency", sa.Integer, nullable=False, server_default="0"),
        sa.Column("priority", sa.Integer, nullable=False, server_default="0"),
        sa.Column("enabled", sa.Boolean, nullable=False, server_default="1"),
        sa.Column("offline", sa.Text),
        sa.Column("created", sa.Text, nullable=False),
        sa.Column("models", sa.Text, nullable=False, server_default="[]"),
        sqlite_autoincrement=True,
    )
    # Other processes look here to learn which of their copies in memory is old.
    op.create_table(
        "revisions",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("number", BIG, nullable=False),
    )
    op.execute("INSERT INTO revisions (name, number) VALUES ('keys', 0), ('providers', 0)")

"""Results and uploads beside the files of jobs: what they are, where they are shown, how long."""

import sqlalchemy as sa
from alembic import op

from aiserver.kit.migrations.columns import BIG

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    for column in (
        # upload (input of a job), artifact, pub or secure.
        sa.Column("kind", sa.Text, nullable=False, server_default="upload"),
        # The path that callers know; `path` is where the bytes lie.
        sa.Column("shown", sa.Text, nullable=False, server_default=""),
        # When its bytes were known to be there; before that nobody may read it.
        sa.Column("kept", BIG),
        sa.Column("expires", BIG),
        sa.Column("operation", sa.Text),
        sa.Column("job_id", BIG),
        sa.Column("width", sa.Integer),
        sa.Column("height", sa.Integer),
        # Seconds.
        sa.Column("duration", sa.Double),
    ):
        op.add_column("files", column)
    op.execute("UPDATE files SET shown = path, kept = created")
    op.create_index("files_shown", "files", ["shown"])
    op.create_index("files_owner", "files", ["key_id", "created"])
    op.create_index("files_kind", "files", ["kind", "created"])
    alive = sa.text("deleted IS NULL")
    op.create_index(
        "files_usage", "files", ["key_id", "size"], sqlite_where=alive, postgresql_where=alive
    )

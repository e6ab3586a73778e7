"""Files that callers sent: whose they are, what they are for, and where their bytes lie."""

import sqlalchemy as sa
from alembic import op

from aiserver.kit.migrations.columns import BIG

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    # Times are milliseconds since 1970. Rows of one path share its bytes.
    op.create_table(
        "files",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("key_id", sa.Integer, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("size", BIG, nullable=False),
        sa.Column("name", sa.Text),
        sa.Column("content_type", sa.Text),
        # The refId of the job that it belongs to.
        sa.Column("job_ref", sa.Text),
        sa.Column("created", BIG, nullable=False),
        # When the sweep asks next whether it is needed; of a deleted one, whether it can be
        # forgotten.
        sa.Column("look", BIG, nullable=False),
        sa.Column("deleted", BIG),
    )
    op.create_index("files_path", "files", ["path"])
    op.create_index("files_look", "files", ["look"])
    # Makes processes that store and delete files do so one after the other.
    op.execute("INSERT INTO revisions (name, number) VALUES ('files', 0)")

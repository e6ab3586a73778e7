"""What several processes need: turns at summing up the ledger, and a number for each of them."""

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.execute("INSERT INTO revisions (name, number) VALUES ('ledger', 0), ('processes', 0)")

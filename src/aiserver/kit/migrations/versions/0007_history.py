"""The history of calls on PostgreSQL; on SQLite it has files of its own."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

_SUMS = (
    *("calls", "failed", "duration_ms", "counted", "counted_ms"),
    *("prompt_tokens", "completion_tokens", "cost", "unpriced", "lost"),
)
_FROM_DETAIL = (
    *("request_id", "address", "method", "path", "asked", "streamed", "message", "attempts"),
    *("cached", "cache_written", "reasoning", "first_token_ms", "waited_ms", "tag", "ref_id"),
)
# In the order of bytes, as SQLite has it.
_TEXT = sa.Text(collation="C")


def upgrade() -> None:
    if op.get_context().dialect.name != "postgresql":
        return
    _calls()
    # Every batch adds to a few rows: there is room for their next version beside them.
    for name, *key in (
        ("hours", ("hour", sa.BigInteger), ("model", _TEXT), ("provider", _TEXT)),
        ("days", ("day", sa.BigInteger), ("key_id", sa.BigInteger), ("model", _TEXT)),
    ):
        op.create_table(
            f"history_{name}",
            sa.Column("month", _TEXT, primary_key=True),
            *(sa.Column(column, type, primary_key=True) for column, type in key),
            *(sa.Column(column, sa.BigInteger, nullable=False) for column in _SUMS),
            postgresql_with={"fillfactor": 50},
        )
    # How many calls each process wrote.
    op.create_table(
        "history_runs",
        sa.Column("month", _TEXT, primary_key=True),
        sa.Column("run", sa.BigInteger, primary_key=True),
        sa.Column("calls", sa.BigInteger, nullable=False),
        postgresql_with={"fillfactor": 50},
    )


def _calls() -> None:
    # Each month's partition has a primary key of its own and names its month by itself. Times are
    # milliseconds, costs picodollars.
    op.create_table(
        "history_calls",
        sa.Column("month", _TEXT, nullable=False),
        sa.Column("id", sa.BigInteger, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("operation", _TEXT, nullable=False),
        sa.Column("key_id", sa.BigInteger),
        sa.Column("model", _TEXT),
        sa.Column("provider", _TEXT),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("error", _TEXT),
        sa.Column("prompt_tokens", sa.BigInteger),
        sa.Column("completion_tokens", sa.BigInteger),
        sa.Column("cost", sa.BigInteger),
        sa.Column("lost", sa.Integer, nullable=False),
        sa.Column("duration_ms", sa.BigInteger, nullable=False),
        sa.Column("detail", sa.JSON, nullable=False),
        postgresql_partition_by="LIST (month)",
    )
    op.create_table(
        "history_contents",
        sa.Column("month", _TEXT, nullable=False),
        sa.Column("call_id", sa.BigInteger, nullable=False),
        sa.Column("prompt", _TEXT),
        sa.Column("answer", _TEXT),
        postgresql_partition_by="LIST (month)",
    )
    columns = (
        *("month", "id", "at", "operation", "key_id", "model", "provider", "status", "error"),
        *("prompt_tokens", "completion_tokens", "cost", "lost", "duration_ms"),
        *(f"detail ->> '{name}' AS {name}" for name in _FROM_DETAIL),
    )
    view = f"CREATE VIEW history_log AS SELECT {', '.join(columns)} FROM history_calls"  # noqa: S608
    op.execute(view)

"""Jobs, what stays of them once archived, fair shares between keys, and callbacks to be sent."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

from aiserver.kit.migrations.columns import BIG

revision = "0005"
down_revision = "0004"

_QUEUED = "state = 'Queued'"
_STARTED = "state = 'Started'"
_SCHEDULED = "state = 'Scheduled'"
_TIMED = "deadline IS NOT NULL AND ended IS NULL"
_ENDED = "ended IS NOT NULL"
_KEYED = "idempotency_key IS NOT NULL"
_PENDING = "state = 'Pending'"


def upgrade() -> None:
    _jobs()
    _job_summary()
    _outbox()
    # The last tag given to a key's jobs of a model; key -1 has the model's highest.
    op.create_table(
        "fair",
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("key_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("tag", BIG, nullable=False),
        sqlite_with_rowid=False,
    )
    if op.get_context().dialect.name == "postgresql":
        _postgres()
    else:
        op.create_table(
            "sequences",
            sa.Column("name", sa.Text, primary_key=True),
            sa.Column("last", sa.Integer, nullable=False),
        )
        op.execute("INSERT INTO sequences (name, last) VALUES ('jobs', 0)")


def _postgres() -> None:
    op.execute("CREATE SEQUENCE job_ids AS integer")
    # How many jobs wait, by key; key -1 has all of them. Side 0 is what was enqueued, side 1 what
    # became of it: the two would else wait for each other's rows.
    op.create_table(
        "job_waiting",
        sa.Column("key_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("side", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("waiting", BIG, nullable=False),
    )
    op.execute(
        "CREATE TABLE job_archive (LIKE jobs, month text NOT NULL) PARTITION BY LIST (month)"
    )
    op.execute("ALTER TABLE job_archive ADD PRIMARY KEY (month, id)")
    op.execute("CREATE INDEX job_archive_content ON job_archive (ended) WHERE request IS NOT NULL")
    # A row is written a few times, then goes: what it leaves behind must not pile up.
    op.execute(
        "ALTER TABLE jobs SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.01,"
        " autovacuum_vacuum_threshold = 1000, autovacuum_analyze_scale_factor = 0.05)"
    )
    op.execute("ALTER TABLE job_waiting SET (fillfactor = 50)")
    op.execute("ALTER TABLE fair SET (fillfactor = 50)")


def _jobs() -> None:
    # Times are milliseconds since 1970, costs picodollars; '' in model and provider is none.
    op.create_table(
        "jobs",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("ref_id", sa.Text, nullable=False),
        sa.Column("key_id", sa.Integer, nullable=False),
        sa.Column("operation", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("run_after", BIG),
        sa.Column("deadline", BIG),
        sa.Column("max_attempts", sa.Integer, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("request", sa.LargeBinary),
        sa.Column("files", sa.Text),
        sa.Column("tag", sa.Text),
        sa.Column("reply_to", sa.Text),
        sa.Column("echo", sa.Text),
        sa.Column("request_id", sa.Text),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("body_hash", sa.LargeBinary),
        sa.Column("created", BIG, nullable=False),
        sa.Column("started", BIG),
        sa.Column("ended", BIG),
        sa.Column("owner", sa.Text),
        sa.Column("lease_until", BIG),
        sa.Column("progress", sa.Double),
        sa.Column("status", sa.Text),
        sa.Column("logs", sa.Text, nullable=False),
        sa.Column("result", sa.LargeBinary),
        sa.Column("error_code", sa.Text),
        sa.Column("error_message", sa.Text),
        sa.Column("error_status", sa.Integer),
        sa.Column("error_kind", sa.Text),
        sa.Column("worker", sa.Text),
        sa.Column("prompt_tokens", BIG),
        sa.Column("completion_tokens", BIG),
        sa.Column("cost", BIG),
        sa.Column("vtag", BIG, nullable=False),
        sa.Column("cancel_asked", BIG),
        sa.Column("notified", BIG),
    )
    _index("jobs_ref", "jobs", ["ref_id", "key_id"], unique=True)
    _index("jobs_idempotency", "jobs", ["key_id", "idempotency_key"], where=_KEYED, unique=True)
    # The deadline is no part of the order: a claim reads nothing but this index.
    claim = ["kind", "model", "provider", sa.text("priority DESC"), "vtag", "id", "deadline"]
    _index("jobs_claim", "jobs", claim, where=_QUEUED)
    _index("jobs_fair", "jobs", ["kind", "model", "priority", "vtag"], where=_QUEUED)
    _index("jobs_scheduled", "jobs", ["run_after"], where=_SCHEDULED)
    _index("jobs_leases", "jobs", ["lease_until"], where=_STARTED)
    _index("jobs_deadlines", "jobs", ["deadline"], where=_TIMED)
    _index("jobs_ended", "jobs", ["ended"], where=_ENDED)


def _job_summary() -> None:
    op.create_table(
        "job_summary",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("ref_id", sa.Text, nullable=False),
        sa.Column("key_id", sa.Integer, nullable=False),
        sa.Column("operation", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("tag", sa.Text),
        sa.Column("reply_to", sa.Text),
        sa.Column("request_id", sa.Text),
        sa.Column("created", BIG, nullable=False),
        sa.Column("started", BIG),
        sa.Column("ended", BIG, nullable=False),
        sa.Column("error_code", sa.Text),
        sa.Column("error_message", sa.Text),
        sa.Column("worker", sa.Text),
        sa.Column("prompt_tokens", BIG),
        sa.Column("completion_tokens", BIG),
        sa.Column("cost", BIG),
        sa.Column("notified", BIG),
        sa.Column("month", sa.Text, nullable=False),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("body_hash", sa.LargeBinary),
    )
    _index("job_summary_ref", "job_summary", ["ref_id", "key_id"], unique=True)
    keyed = ["key_id", "idempotency_key"]
    _index("job_summary_idempotency", "job_summary", keyed, where=_KEYED, unique=True)
    _index("job_summary_ended", "job_summary", ["ended"])


def _outbox() -> None:
    op.create_table(
        "outbox",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("job_id", sa.Integer),
        sa.Column("key_id", sa.Integer, nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("receiver", sa.Text, nullable=False),
        sa.Column("verb", sa.Text, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("created", BIG, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("due", BIG, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("last_status", sa.Integer),
        sa.Column("last_error", sa.Text),
        sa.Column("delivered", BIG),
    )
    _index("outbox_due", "outbox", ["receiver", "due", "id"], where=_PENDING)
    _index("outbox_next", "outbox", ["due"], where=_PENDING)
    _index("outbox_job", "outbox", ["job_id"])
    _index("outbox_created", "outbox", ["created"])
    op.create_table(
        "outbox_attempts",
        sa.Column("delivery_id", sa.Text, primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", BIG, nullable=False),
        sa.Column("duration_ms", BIG, nullable=False),
        sa.Column("status", sa.Integer),
        sa.Column("error", sa.Text),
        sqlite_with_rowid=False,
    )


def _index(
    name: str,
    table: str,
    columns: Sequence[str | sa.TextClause],
    *,
    where: str | None = None,
    unique: bool = False,
) -> None:
    only = None if where is None else sa.text(where)
    op.create_index(name, table, columns, unique=unique, sqlite_where=only, postgresql_where=only)

"""Runs inside alembic: applies the revisions on SQLite, or writes them as SQL for PostgreSQL."""

from alembic import context

if context.is_offline_mode():
    context.configure(dialect_name="postgresql", dialect_opts={"paramstyle": "named"})
    # Whoever runs the SQL does so inside a transaction.
    context.run_migrations()
else:
    context.configure(
        connection=context.config.attributes["connection"],
        transactional_ddl=True,
        transaction_per_migration=False,
    )
    with context.begin_transaction():
        context.run_migrations()

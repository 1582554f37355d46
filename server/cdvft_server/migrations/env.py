"""Alembic's entry: runs migrations on the connection, and in the transaction, of `database.upgrade`."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()

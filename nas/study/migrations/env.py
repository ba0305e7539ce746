"""How alembic runs our migrations: on a connection that is given, in its transaction."""

from alembic import context

from nas.study.upgrade import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
with context.begin_transaction():
    context.run_migrations()

"""Bringing a database to the newest schema, once, however many servers start at the same moment."""

import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from cdvft_server.exceptions import UnsupportedDatabase

if TYPE_CHECKING:
    from cdvft_server.store.database import Database

__all__ = ["MIGRATIONS", "upgrade"]

log = logging.getLogger(__name__)

MIGRATIONS = Path(__file__).parent.parent / "migrations"
_migrating = threading.Lock()  # alembic keeps the running migration in module globals


def upgrade(database: "Database") -> None:
    """All migrations that are missing, in one transaction, after a copy where the database is a file.

    Raises UnsupportedDatabase for a newer schema or another program's tables, StoreUnavailable.
    """
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    scripts = ScriptDirectory.from_config(config)
    with database.read() as connection:
        database.backend.check_kind(connection)
        if _found(connection, scripts, database) == tuple(scripts.get_heads()):
            return
    with _migrating, database.upgrading() as connection:
        found, heads = _found(connection, scripts, database), tuple(scripts.get_heads())
        if found == heads:
            return  # another process was faster
        if found:
            copy = database.backend.keep_copy(heads[0])
            kept = f"; as it was, it is kept in {copy}" if copy else ""
            log.warning("the database is upgraded from schema %s to %s%s", found[0], heads[0], kept)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _found(connection: Connection, scripts: ScriptDirectory, database: "Database") -> tuple[str, ...]:
    """The database's schema, () for an empty one."""
    known = {script.revision for script in scripts.walk_revisions()}
    found = MigrationContext.configure(connection).get_current_heads()
    if any(revision not in known for revision in found):
        raise UnsupportedDatabase(
            f"the database {database.url} has schema {', '.join(found)}, this version of cdvft knows it up to "
            f"{', '.join(scripts.get_heads())}: use a newer version, or another --database"
        )
    if not found and set(inspect(connection).get_table_names()) - {"alembic_version"}:
        raise UnsupportedDatabase(f"the database {database.url} holds another program's tables; use another --database")
    return tuple(found)

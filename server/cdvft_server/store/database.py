"""The store's connections: transactions that are durable when they return, the schema's migrations, and their errors.

Knows nothing of adapters.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, exc, inspect, make_url

from cdvft_server.exceptions import StoreUnavailable, UnsupportedDatabase

__all__ = ["Database", "sqlite_url"]

MIGRATIONS = Path(__file__).parent.parent / "migrations"
BUSY_SECONDS = 10.0
_migrating = threading.Lock()  # alembic keeps the running migration in module globals


class Database:
    """One SQLite file. Every method may be called from any thread.

    Opening makes the file and its folder where they are missing and upgrades an older schema. Where another file takes
    its place later, or none, nothing more is written; connections that are open go on reading what they have.
    Raises UnsupportedDatabase, StoreUnavailable.
    """

    def __init__(self, url: str) -> None:
        self.url = sqlite_url(url)
        _make_folder(self.url)
        self._file = _File()
        self._engine = _engine(self.url, self._file)
        self._writing = threading.Lock()  # in line here, rather than polling for SQLite's own lock
        self._closed = False
        try:
            self._upgrade()
        except BaseException:
            self.close()
            raise

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database throughout. Raises StoreUnavailable."""
        with self._errors(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that excludes other writers from its start, and is on disk once this returns.

        An exception inside rolls it back. Raises StoreUnavailable.
        """
        with self._writing, self._errors(), self._engine.execution_options(writes=True).begin() as connection:
            self._file.check()
            yield connection

    def check_file(self) -> None:
        """Raises StoreUnavailable where the file is not the one that was opened."""
        self._file.check()

    def close(self) -> None:
        self._closed = True
        self._engine.dispose()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        if self._closed:
            raise StoreUnavailable("the store is closed")
        try:
            yield
        except (exc.OperationalError, exc.InterfaceError, exc.InternalError) as error:
            raise StoreUnavailable(f"the store cannot be used: {error.orig}") from error
        except exc.TimeoutError as error:
            raise StoreUnavailable("the store cannot be used: all its connections are busy") from error
        except exc.DatabaseError as error:
            if type(error) is not exc.DatabaseError:  # a mistake of ours
                raise
            raise StoreUnavailable(f"the store cannot be used: {error.orig}") from error

    def _upgrade(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        scripts = ScriptDirectory.from_config(config)
        with self.read() as connection:
            if not self._is_older(connection, scripts):
                return
        with _migrating, self.write() as connection:
            if self._is_older(connection, scripts):  # no other process was faster
                config.attributes["connection"] = connection
                command.upgrade(config, "head")

    def _is_older(self, connection: Connection, scripts: ScriptDirectory) -> bool:
        heads = scripts.get_heads()
        known = {script.revision for script in scripts.walk_revisions()}
        found = MigrationContext.configure(connection).get_current_heads()
        if any(revision not in known for revision in found):
            raise UnsupportedDatabase(
                f"the database {self.url} has schema {', '.join(found)}, this version of cdvft knows it up to "
                f"{', '.join(heads)}: use a newer version, or another --database"
            )
        if not found and set(inspect(connection).get_table_names()) - {"alembic_version"}:
            raise UnsupportedDatabase(f"the database {self.url} holds another program's tables; use another --database")
        return list(found) != heads


def sqlite_url(text: str) -> URL:
    """The URL of a database file, which nothing is done to. Raises UnsupportedDatabase for what is none."""
    try:
        url = make_url(text)
    except exc.ArgumentError:
        raise UnsupportedDatabase(f"{text!r} is not a database URL; use sqlite:////absolute/path/store.db") from None
    if url.drivername not in ("sqlite", "sqlite+pysqlite"):
        raise UnsupportedDatabase(
            f"{url.drivername} databases are not supported; use sqlite:////absolute/path/store.db"
        )
    if not url.database or url.database == ":memory:" or url.query.get("mode") == "memory":
        raise UnsupportedDatabase("a database in memory would lose its adapters; use sqlite:////absolute/path/store.db")
    return url


def _make_folder(url: URL) -> None:
    if "uri" not in url.query and url.database:
        try:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreUnavailable(f"the folder of the database {url} cannot be made: {error}") from error


class _File:
    """Which file the first connection opened."""

    def __init__(self) -> None:
        self._opened: tuple[str, tuple[int, int]] | None = None

    def opened(self, connection: Any) -> None:
        """By each new connection. Raises StoreUnavailable where it has another file than the first."""
        if self._opened is None:
            path = connection.execute("PRAGMA database_list").fetchall()[0][2]
            self._opened = path, _identity(path)
        self.check()

    def check(self) -> None:
        """Raises StoreUnavailable where another file is in its place, or none."""
        if self._opened is None:
            return
        path, identity = self._opened
        try:
            if _identity(path) == identity:
                return
        except OSError:
            pass
        raise StoreUnavailable("the database file was removed or replaced while the server ran: restart the server")


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _engine(url: URL, file: _File) -> Engine:
    engine = create_engine(
        url, connect_args={"timeout": BUSY_SECONDS}, pool_size=8, max_overflow=24, pool_timeout=BUSY_SECONDS
    )

    @event.listens_for(engine, "do_connect")
    def before(*_: object) -> None:
        file.check()  # to open a file that was removed would make a new one

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _: object) -> None:
        connection.isolation_level = None  # sqlite3 begins nothing by itself: `begin` below does
        connection.text_factory = _text
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}").close()
        try:
            file.opened(connection)
        except BaseException:
            connection.close()
            raise

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _text(data: bytes) -> str:
    """Text that is no UTF-8 any more can be read and told from good text: it has surrogates."""
    return data.decode(errors="surrogateescape")

"""The store's transactions, durable when they return, and their errors, whichever kind of database it is.

Knows nothing of adapters.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import ColumnElement, Connection, exc

from cdvft_server.exceptions import StoreUnavailable
from cdvft_server.store.backend import UPGRADE_SECONDS, Backend, Kind
from cdvft_server.store.postgres import PostgresBackend
from cdvft_server.store.schema import upgrade
from cdvft_server.store.sqlite import SqliteBackend
from cdvft_server.store.urls import database_url, is_sqlite

__all__ = ["FILE_SECONDS", "Database"]

READ_SECONDS = 3.0  # what a request waits for
FILE_SECONDS = 30.0
WRITE_SECONDS = 30.0


class Database:
    """One SQLite file, or one database of a PostgreSQL server. Every method may be called from any thread.

    Opening upgrades an older schema. Raises UnsupportedDatabase, StoreUnavailable.
    """

    def __init__(self, url: str) -> None:
        self.url = database_url(url)
        self.backend: Backend = SqliteBackend(self.url) if is_sqlite(self.url) else PostgresBackend(self.url)
        self._writing = threading.Lock()  # in line here, rather than each with a connection in hand
        self._closed = False
        try:
            upgrade(self)
        except StoreUnavailable as error:
            self.close()
            cause = str(getattr(error.__cause__, "orig", ""))  # who starts the server may know it all
            raise StoreUnavailable(str(error) if cause in str(error) else f"{error} ({cause})") from None
        except BaseException:
            self.close()
            raise

    @property
    def now(self) -> ColumnElement[int]:
        """The database's clock, in unix seconds: the same for all servers on it."""
        return self.backend.now

    @contextmanager
    def read(self, seconds: float | None = None) -> Iterator[Connection]:
        """A transaction that sees one state of the database throughout.

        Raises StoreUnavailable, also where a database across the network takes longer than that (READ_SECONDS).
        """
        with self._transaction("read", READ_SECONDS if seconds is None else seconds) as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that excludes other writers from its start, and is on disk once this returns.

        An exception inside rolls it back. Raises StoreUnavailable.
        """
        with self._my_turn(WRITE_SECONDS), self._transaction("write", WRITE_SECONDS) as connection:
            self.backend.check()
            yield connection

    @contextmanager
    def upgrading(self) -> Iterator[Connection]:
        """A `write` that may take long, and waits long for another server's."""
        with self._my_turn(UPGRADE_SECONDS), self._transaction("upgrade", UPGRADE_SECONDS) as connection:
            yield connection

    def changes(self) -> int | None:
        """See `Backend.changes`."""
        return None if self._closed else self.backend.changes()

    def check_file(self) -> None:
        """Raises StoreUnavailable where the database is not the one that was opened."""
        self.backend.check()

    def close(self) -> None:
        self._closed = True
        self.backend.close()

    @contextmanager
    def _my_turn(self, seconds: float) -> Iterator[None]:
        if not self._writing.acquire(timeout=seconds):
            raise StoreUnavailable("the store cannot be used: others wait to write to it")
        try:
            yield
        finally:
            self._writing.release()

    @contextmanager
    def _transaction(self, kind: Kind, seconds: float) -> Iterator[Connection]:
        """The deadline ends after the connection was given back: to give it back asks the database, too."""
        engine = self.backend.engine(kind)
        with self._errors(), self.backend.deadline(seconds) as watch, engine.connect() as connection:
            watch(connection)
            with connection.begin():
                yield connection

    @contextmanager
    def _errors(self) -> Iterator[None]:
        if self._closed:
            raise StoreUnavailable("the store is closed")
        try:
            yield
        except exc.TimeoutError as error:
            raise StoreUnavailable("the store cannot be used: all its connections are busy") from error
        except exc.DBAPIError as error:
            told = self.backend.told(error)
            if told is None:  # a mistake of ours
                raise
            raise StoreUnavailable(f"the store cannot be used: {told}") from error

"""SQLite: one file, in WAL mode, whose writers wait for each other from the beginning of their transactions."""

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, Integer, cast, create_engine, event, exc, func

from cdvft_server.exceptions import StoreUnavailable
from cdvft_server.store.backend import BUSY_SECONDS, Kind

__all__ = ["SqliteBackend"]


class SqliteBackend:
    """Makes the file and its folder where they are missing. Where another file takes its place later, or none, nothing
    more is written; connections that are open go on reading what they have. Raises StoreUnavailable."""

    now = cast(func.strftime("%s", "now"), Integer)

    def __init__(self, url: URL) -> None:
        _make_folder(url)
        self._file = _File()
        reading = _engine(url, self._file)
        writing = reading.execution_options(writes=True)
        self._engines: dict[Kind, Engine] = {"read": reading, "write": writing, "upgrade": writing}
        self._watching: sqlite3.Connection | None = None

    def engine(self, kind: Kind) -> Engine:
        return self._engines[kind]

    def check(self) -> None:
        self._file.check()

    def changes(self) -> int | None:
        """SQLite counts others' commits for each connection, in microseconds; this one never waits, and writes
        nothing."""
        try:
            if self._watching is None:
                self._watching = sqlite3.connect(
                    f"file:{quote(str(self._file.path))}?mode=rw",
                    timeout=0,
                    isolation_level=None,
                    uri=True,
                    check_same_thread=False,
                )
            return int(self._watching.execute("PRAGMA data_version").fetchone()[0])
        except sqlite3.Error:
            return None

    def check_kind(self, connection: Connection) -> None:
        """Every file can."""

    @contextmanager
    def deadline(self, seconds: float) -> Iterator[Callable[[Connection], None]]:
        yield lambda connection: None  # SQLite itself waits no longer than BUSY_SECONDS

    def told(self, error: exc.DBAPIError) -> str | None:
        usual = exc.OperationalError | exc.InterfaceError | exc.InternalError
        return str(error.orig) if isinstance(error, usual) or type(error) is exc.DatabaseError else None

    def keep_copy(self, schema: str) -> Path | None:
        """`store.db.before-SCHEMA`, beside the file: whole, or not there."""
        path = self._file.path
        copy = path.with_name(f"{path.name}.before-{schema}")
        partial = path.with_name(f"{path.name}.before-{schema}.partial")
        try:
            partial.unlink(missing_ok=True)
            with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(partial)) as target:
                source.backup(target)
            shutil.copymode(path, partial)
            os.replace(partial, copy)
        except (OSError, sqlite3.Error) as error:
            raise StoreUnavailable(f"the database {path} cannot be copied before its upgrade: {error}") from error
        return copy

    def close(self) -> None:
        self._engines["read"].dispose()
        if self._watching is not None:
            self._watching.close()
            self._watching = None


def _make_folder(url: URL) -> None:
    """A new one is its owner's alone, as XDG wants it: who reads the store has every tenant's adapters."""
    if "uri" not in url.query and url.database:
        try:
            Path(url.database).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreUnavailable(f"the folder of the database {url} cannot be made: {error}") from error


class _File:
    """Which file the first connection opened."""

    def __init__(self) -> None:
        self._opened: tuple[str, tuple[int, int]] | None = None

    @property
    def path(self) -> Path:
        """Once a connection was made."""
        assert self._opened is not None
        return Path(self._opened[0])

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

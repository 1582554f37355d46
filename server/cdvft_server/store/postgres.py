"""PostgreSQL, for any number of servers: writers wait for each other on one advisory lock."""

import select
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, BigInteger, Connection, Engine, cast, create_engine, event, exc, extract, func

from cdvft_server.exceptions import UnsupportedDatabase
from cdvft_server.store.backend import BUSY_SECONDS, UPGRADE_SECONDS, Kind
from cdvft_server.store.outage import AWAY, Breaker, Watch

__all__ = ["PostgresBackend"]

CONNECT_SECONDS = 2
STATEMENT_SECONDS = 30
WRITERS = 0x63_64_76_66_74  # the advisory lock's number: "cdvft"
CONNECTING = {
    "connect_timeout": CONNECT_SECONDS,
    "tcp_user_timeout": 3000,  # milliseconds without an acknowledgement of what was sent
    "keepalives_idle": 5,
    "keepalives_interval": 1,
    "keepalives_count": 3,
    "client_encoding": "utf8",
    "application_name": "cdvft",
}
"""libpq's parameters, where the URL does not give them."""

SETTINGS = f"""SELECT set_config('lock_timeout', '{BUSY_SECONDS:.0f}s', false),
    set_config('statement_timeout', '{STATEMENT_SECONDS}s', false),
    set_config('idle_in_transaction_session_timeout', '{STATEMENT_SECONDS}s', false),
    CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', false) END"""
"""Of each connection. A server that stands still in a transaction gives the writers' lock up; what was answered as
stored is on disk, whatever the database's default is."""

PATIENT = f"""SELECT set_config('lock_timeout', '{UPGRADE_SECONDS:.0f}s', true),
    set_config('statement_timeout', '0', true)"""


class PostgresBackend:
    """One database of a server. Raises StoreUnavailable."""

    now = cast(func.floor(extract("epoch", func.clock_timestamp())), BigInteger)

    def __init__(self, url: URL) -> None:
        one_state = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        engine = _engine(url)
        self._watch = Watch()
        self._engines: dict[Kind, Engine] = {
            "read": engine.execution_options(**one_state),
            "write": engine.execution_options(writes=True),  # READ COMMITTED: sees what the writer before committed
            "upgrade": engine.execution_options(writes=True, patient=True),
        }

    def engine(self, kind: Kind) -> Engine:
        return self._engines[kind]

    def changes(self) -> None:
        """It would be a question across the network."""

    def check(self) -> None:
        """A URL names one database for ever."""

    def check_kind(self, connection: Connection) -> None:
        encoding = connection.exec_driver_sql("SHOW server_encoding").scalar()
        if encoding != "UTF8":
            raise UnsupportedDatabase(
                f"the database has the encoding {encoding}, texts need UTF8: make one with CREATE DATABASE ... "
                "ENCODING 'UTF8' TEMPLATE template0"
            )

    def deadline(self, seconds: float) -> AbstractContextManager[Callable[[Connection], None]]:
        return self._watch.deadline(seconds)

    def told(self, error: exc.DBAPIError) -> str | None:
        forbidden = getattr(error.orig, "sqlstate", None) == "42501"
        if not forbidden and not isinstance(error, exc.OperationalError | exc.InterfaceError | exc.InternalError):
            return None
        said = getattr(getattr(error.orig, "diag", None), "message_primary", None)
        return AWAY if error.connection_invalidated or said is None else str(said)

    def keep_copy(self, schema: str) -> Path | None:
        return None  # its own backups; a migration that fails is undone whole

    def close(self) -> None:
        self._engines["read"].dispose()
        self._watch.close()


def _engine(url: URL) -> Engine:
    breaker = Breaker(CONNECT_SECONDS + 1)
    engine = create_engine(
        url,
        connect_args={name: value for name, value in CONNECTING.items() if name not in url.query},
        use_native_hstore=False,
        pool_size=4,
        max_overflow=8,
        pool_timeout=BUSY_SECONDS,
    )

    @event.listens_for(engine, "do_connect")
    def connect(dialect: Any, _: object, args: Any, parameters: Any) -> Any:
        breaker.check()
        try:
            connection = dialect.connect(*args, **parameters)
        except Exception as error:
            breaker.failed(error)
            raise
        breaker.worked()
        return connection

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _: object) -> None:
        connection.autocommit = True
        connection.execute(SETTINGS)
        connection.autocommit = False

    @event.listens_for(engine, "checkout")
    def checkout(connection: Any, *_: object) -> None:
        """A server that was stopped or restarted has closed its connections: that shows without asking it."""
        if connection.closed or _has_news(connection.fileno()):
            raise exc.InvalidatePoolError

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        if options.get("patient"):
            connection.exec_driver_sql(PATIENT)
        if options.get("writes"):
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITERS})")

    return engine


def _has_news(descriptor: int) -> bool:
    """Something came, unasked for: its end."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))

"""What a kind of database must offer to `Database`: its connections, how transactions begin, what its errors mean."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, Protocol

from sqlalchemy import ColumnElement, Connection, Engine, exc

__all__ = ["BUSY_SECONDS", "UPGRADE_SECONDS", "Backend", "Kind"]

BUSY_SECONDS = 10.0  # how long a writer waits for another, and anybody for a connection
UPGRADE_SECONDS = 600.0

Kind = Literal["read", "write", "upgrade"]
"""A `write` excludes other writers of all processes from its start; an `upgrade` too, and may take long."""


class Backend(Protocol):
    @property
    def now(self) -> ColumnElement[int]:
        """The database's clock, in unix seconds."""
        ...

    def engine(self, kind: Kind) -> Engine:
        """Begins transactions of this kind."""
        ...

    def check(self) -> None:
        """Raises StoreUnavailable where the database is not the one that was opened."""
        ...

    def changes(self) -> int | None:
        """A number that is another once anybody has written to the database; None where that takes longer to find out
        than a thread that serves others may wait. For one thread."""
        ...

    def check_kind(self, connection: Connection) -> None:
        """Raises UnsupportedDatabase for a database that cannot hold the store."""
        ...

    def deadline(self, seconds: float) -> AbstractContextManager[Callable[[Connection], None]]:
        """Gives a function that takes the connection which is to be given up where this goes on for longer."""
        ...

    def told(self, error: exc.DBAPIError) -> str | None:
        """Why the database cannot be used, without addresses and paths; None where the mistake is ours."""
        ...

    def keep_copy(self, schema: str) -> Path | None:
        """Copy the database as it is before it is upgraded to this schema; None where that is left to others.

        Raises StoreUnavailable.
        """
        ...

    def close(self) -> None: ...

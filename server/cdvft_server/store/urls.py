"""What `--database` may be. Opens nothing."""

from sqlalchemy import URL, exc, make_url

from cdvft_server.exceptions import UnsupportedDatabase

__all__ = ["database_url", "is_sqlite"]

EXAMPLES = "use sqlite:////absolute/path/store.db or postgresql://user@host:port/database"
SQLITE = ("sqlite", "sqlite+pysqlite")
POSTGRESQL = ("postgresql", "postgresql+psycopg")


def database_url(text: str) -> URL:
    """The URL of a database that can hold the store. Raises UnsupportedDatabase."""
    try:
        url = make_url(text)
    except (exc.ArgumentError, ValueError):  # ValueError: a port that is no number
        raise UnsupportedDatabase(f"{_shown(text)!r} is not a database URL; {EXAMPLES}") from None
    if is_sqlite(url):
        if not url.database or url.database == ":memory:" or url.query.get("mode") == "memory":
            raise UnsupportedDatabase(
                "a database in memory would lose its adapters; use sqlite:////absolute/path/store.db"
            )
        return url
    if url.drivername not in POSTGRESQL:
        raise UnsupportedDatabase(f"{url.drivername} databases are not supported; {EXAMPLES}")
    if not url.database:
        raise UnsupportedDatabase("the URL names no database; use postgresql://user@host:port/database")
    return url.set(drivername="postgresql+psycopg")


def is_sqlite(url: URL) -> bool:
    return url.drivername in SQLITE


def _shown(text: str) -> str:
    """Without what may be a password."""
    scheme, mark, rest = text.partition("://")
    return f"{scheme}{mark}***{rest[rest.rindex('@') :]}" if "@" in rest else text

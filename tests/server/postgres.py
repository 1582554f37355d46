"""A real PostgreSQL for tests: started once, in a folder of its own, by a user that may run it."""

import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cdvft_server.store.tables import metadata
from sqlalchemy import URL, create_engine, make_url

SECONDS = 60  # a bound for a hang
FAST = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "max_connections": "200"}


def programs() -> Path | None:
    """The folder of initdb and pg_ctl, None where PostgreSQL's server is not installed."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -float(path.parent.name))
    return next((folder for folder in folders if (folder / "initdb").exists() and (folder / "pg_ctl").exists()), None)


class Postgres:
    """A server on a unix socket in `folder`, which is short, as a socket's path must be. `stop` and `start` are as a
    user's would be: connections are cut, and what was committed is there again."""

    def __init__(self, bin: Path, folder: Path, extra: Mapping[str, str]) -> None:
        self.folder = folder
        self._bin, self._names = bin, itertools.count()
        self._as: dict[str, Any] = {}
        if os.getuid() == 0:  # which PostgreSQL refuses
            user = "postgres" if _exists("postgres") else "nobody"
            shutil.chown(folder, user)
            self._as = {"user": user, "group": _group_of(user), "extra_groups": []}
        self._call("initdb", "-D", "data", "-U", "cdvft", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
        settings = {**FAST, **extra, "listen_addresses": "''", "unix_socket_directories": f"'{folder}'"}
        with open(folder / "data/postgresql.conf", "a") as file:
            file.writelines(f"{name} = {value}\n" for name, value in settings.items())

    def start(self) -> None:
        self._call("pg_ctl", "-D", "data", "-w", "-t", f"{SECONDS}", "-l", "log", "start")

    def stop(self) -> None:
        self._call("pg_ctl", "-D", "data", "-w", "-t", f"{SECONDS}", "-m", "fast", "stop")

    @property
    def pid(self) -> int:
        return int((self.folder / "data/postmaster.pid").read_text().split()[0])

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://cdvft@/{database}?host={self.folder}&connect_timeout={SECONDS}"

    def emptied(self) -> str:
        """The URL of a store without content, quicker than a new database."""
        self.execute(
            f"TRUNCATE {', '.join(metadata.tables)} RESTART IDENTITY",
            "INSERT INTO tenants (name, weight, created_at) VALUES ('default', 1, 0)",
            "INSERT INTO settings (name, value) VALUES ('authentication_required', 'false')",
        )
        return self.url()

    @contextmanager
    def database(self, options: str = "") -> Iterator[str]:
        """The URL of a new database, which goes at the end: each is some megabytes on disk."""
        name = f"test_{next(self._names)}"
        self.execute(f"CREATE DATABASE {name} {options}")
        try:
            yield self.url(name)
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def execute(self, *statements: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """The rows of the last one."""
        return execute(self.url(database), *statements)

    def _call(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self._bin / program), *arguments],
            check=True,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # the server inherits it: a pipe would never end
            stderr=subprocess.DEVNULL,
            timeout=2 * SECONDS,
            env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
            **self._as,
        )


def execute(url: str, *statements: str) -> list[tuple[Any, ...]]:
    """In any database, without the store; the rows of the last one."""
    engine = create_engine(_driver(make_url(url)), isolation_level="AUTOCOMMIT")
    rows: list[tuple[Any, ...]] = []
    with engine.connect() as connection:
        for statement in statements:
            result = connection.exec_driver_sql(statement)
            rows = [tuple(row) for row in result] if result.returns_rows else []
    engine.dispose()
    return rows


@contextmanager
def running(extra: Mapping[str, str] | None = None) -> Iterator[Postgres | None]:
    """With these settings beside our own; None where it is not installed."""
    bin = programs()
    if bin is None:
        yield None
        return
    folder = Path(tempfile.mkdtemp(prefix="cdvft-pg-"))
    try:
        server = Postgres(bin, folder, extra or {})
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


def _driver(url: URL) -> URL:
    return url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url


def _exists(user: str) -> bool:
    import pwd

    return any(entry.pw_name == user for entry in pwd.getpwall())


def _group_of(user: str) -> int:
    import pwd

    return pwd.getpwnam(user).pw_gid

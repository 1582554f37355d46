"""Opening: the schema is what the tables say, older databases are upgraded, what is no store of ours is refused."""

import re
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from cdvft_server.exceptions import StoreUnavailable, UnsupportedDatabase
from cdvft_server.store import Store
from cdvft_server.store.database import Database
from cdvft_server.store.schema import MIGRATIONS
from cdvft_server.store.tables import metadata
from sqlalchemy import create_engine

from tests.server.store_maker import BASE, ME, NEWEST, new, older_migrations, put, url_of


def execute(path: Path, *statements: str) -> list[tuple]:
    connection = sqlite3.connect(path)
    rows: list[tuple] = []
    for statement in statements:
        rows = connection.execute(statement).fetchall()
    connection.commit()
    connection.close()
    return rows


def test_migrations_make_the_tables(tmp_path: Path) -> None:
    Store.open(url_of(tmp_path)).close()
    engine = create_engine(url_of(tmp_path))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    metadata.create_all(other := create_engine(f"sqlite:///{tmp_path}/direct.db"))
    for opened in (engine, other):
        opened.dispose()

    def clauses(sql: str) -> list[str]:
        """A table that was altered has the same ones in another order."""
        parts = re.split(r"(?=CONSTRAINT |PRIMARY KEY)", " ".join(sql.replace('"', "").split()))
        return sorted(part.strip(" ,)") for part in parts)

    def schema(name: str) -> list[tuple]:
        rows = execute(
            tmp_path / name, "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name NOT LIKE 'alembic%'"
        )
        return sorted(
            (kind, name, table, clauses(sql or "")) for kind, name, table, sql in rows if "alembic" not in table
        )

    assert schema("store.db") == schema("direct.db")


def test_settings_of_every_connection(tmp_path: Path) -> None:
    database = Database(url_of(tmp_path))
    expected = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10_000}
    with database.read() as connection, database.read() as second:
        for opened in (connection, second):
            found = {name: opened.exec_driver_sql(f"PRAGMA {name}").scalar() for name in expected}
            assert found == expected
    database.close()


def test_folders_are_made(tmp_path: Path) -> None:
    folder = tmp_path / "a b é" / "d"
    store = Store.open(url_of(folder))
    assert put(store, "poet", "one").version == 1
    store.close()
    assert (folder / "store.db").is_file()
    assert not list(folder.glob("*before*"))  # a new database has nothing to keep
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700  # who reads the store has all that tenants keep there


def add_migration(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """From here on, a copy of the migrations with one more is in use."""
    shutil.copytree(MIGRATIONS, folder)
    (folder / "versions/0099_more.py").write_text(
        f"import sqlalchemy as sa\nfrom alembic import op\n\nrevision = '0099'\ndown_revision = '{NEWEST}'\n\n\n"
        f"def upgrade() -> None:\n    op.add_column('steps', sa.Column('more', sa.Integer))\n    {body}\n"
    )
    monkeypatch.setattr("cdvft_server.store.schema.MIGRATIONS", folder)


def test_an_older_schema_is_upgraded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(url_of(tmp_path))
    row = put(store, "poet", "one")
    store.close()
    add_migration(tmp_path / "more 100%", monkeypatch, "op.execute('INSERT INTO steps VALUES (\\'old\\', 1, 2)')")
    for _ in range(2):
        store = Store.open(url_of(tmp_path))
        assert store.get(ME, "poet", BASE) == row
        assert store.step_done("old")
        store.close()
    assert execute(tmp_path / "store.db", "SELECT more FROM steps") == [(2,)]


@pytest.mark.parametrize("version", ["0001", "0002", "0003"])
def test_a_database_of_an_older_schema_keeps_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, version: str
) -> None:
    with monkeypatch.context() as patch:
        older_migrations(tmp_path / "older", version, patch)
        Store.open(url_of(tmp_path)).close()
    made = Store.open(url_of(tmp_path / "new"))
    row = put(made, "poet", "one")
    files = made.files(row.id)
    made.close()
    _copy(tmp_path / "new/store.db", tmp_path / "store.db")
    assert execute(tmp_path / "store.db", "SELECT version_num FROM alembic_version") == [(version,)]
    with caplog.at_level("WARNING"):
        store = Store.open(url_of(tmp_path))
    copy = tmp_path / f"store.db.before-{NEWEST}"
    assert f"upgraded from schema {version} to {NEWEST}; as it was, it is kept in {copy}" in caplog.text
    assert execute(copy, "SELECT version_num FROM alembic_version") == [(version,)]
    assert execute(copy, "SELECT name FROM names") == [("poet",)]
    assert (store.get(ME, "poet", BASE), store.files(row.id)) == (row, files)
    with_indices = replace(new("two"), files=replace(new("two").files, frozen=b"indices"))
    frozen, _ = store.put_version(ME, "drawn", with_indices)
    assert store.files(frozen.id).frozen == b"indices"
    assert not store.get(ME, "drawn", BASE).pinned
    assert store.set_pinned(ME, "poet", True, BASE) == store.get(ME, "poet", BASE)
    store.delete(ME, "drawn", None, BASE)
    store.close()
    assert execute(tmp_path / "store.db", "SELECT count(*) FROM version_files") == [(2,)]


def _copy(source: Path, target: Path) -> None:
    """All rows, without the columns that the target does not have."""
    with sqlite3.connect(target) as database:
        database.execute("ATTACH ? AS source", [str(source)])
        for table in ("names", "adapters", "versions", "aliases", "blobs", "version_files", "steps"):
            columns = ", ".join(row[1] for row in database.execute(f"PRAGMA main.table_info({table})"))
            database.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM source.{table}")
    database.close()


def test_an_upgrade_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(url_of(tmp_path))
    row = put(store, "poet", "one")
    store.close()
    with monkeypatch.context() as patch:
        add_migration(tmp_path / "more", patch, "raise RuntimeError('stopped halfway')")
        with pytest.raises(RuntimeError, match="stopped halfway"):
            Store.open(url_of(tmp_path))
    store = Store.open(url_of(tmp_path))
    assert store.get(ME, "poet", BASE) == row
    store.close()


def test_an_empty_version_table_is_the_oldest_schema(tmp_path: Path) -> None:
    execute(tmp_path / "store.db", "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
    store = Store.open(url_of(tmp_path))
    assert put(store, "poet", "one").version == 1
    store.close()
    assert execute(tmp_path / "store.db", "SELECT version_num FROM alembic_version") == [(NEWEST,)]


def test_a_newer_schema_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    Store.open(url_of(tmp_path)).close()
    execute(tmp_path / "store.db", "UPDATE alembic_version SET version_num = '0100'")
    with pytest.raises(UnsupportedDatabase, match=f"has schema 0100, this version of cdvft knows it up to {NEWEST}"):
        Store.open(url_of(tmp_path))
    assert execute(tmp_path / "store.db", "SELECT version_num FROM alembic_version") == [("0100",)]


def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    execute(tmp_path / "store.db", "CREATE TABLE notes (text TEXT)")
    with pytest.raises(UnsupportedDatabase, match="another program's tables"):
        Store.open(url_of(tmp_path))
    assert execute(tmp_path / "store.db", "SELECT name FROM sqlite_master") == [("notes",)]


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"not a database, but long enough to have a header of a hundred bytes" * 4)
    with pytest.raises(StoreUnavailable, match="file is not a database"):
        Store.open(url_of(tmp_path))


def test_a_place_where_no_file_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreUnavailable, match="cannot be made"):
        Store.open(url_of(tmp_path / "file"))
    (tmp_path / "store.db").mkdir()
    with pytest.raises(StoreUnavailable, match="unable to open database file"):
        Store.open(url_of(tmp_path))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "not a database URL"),
        ("store.db", "not a database URL"),
        ("mysql://host/db", "mysql databases are not supported"),
        ("mysql://user:secret@host/db", "mysql databases are not supported"),
        ("postgresql+psycopg2://user:secret@host/db", "not supported; use sqlite:.* or postgresql://user@host:port/da"),
        ("postgresql://user:secret@host", "names no database"),
        ("postgresql://user:secret@host:x/db", "not a database URL"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("sqlite:///file:x?mode=memory&uri=true", "in memory"),
    ],
)
def test_urls(url: str, message: str) -> None:
    with pytest.raises(UnsupportedDatabase, match=message) as error:
        Store.open(url)
    assert "secret" not in str(error.value)


def test_opened_for_the_first_time_by_several_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from cdvft_server.store import Store; sys.stdin.readline()\n"
        "store = Store.open(sys.argv[1]); store.ping(); store.close()"
    )
    command = [sys.executable, "-W", "error", "-c", code, url_of(tmp_path)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
    assert [process.communicate()[1].decode() for process in processes] == [""] * 3
    assert [process.returncode for process in processes] == [0] * 3

    folder, stores = tmp_path / "threads", []
    threads = [threading.Thread(target=lambda: stores.append(Store.open(url_of(folder)))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores) == 6
    for number, store in enumerate(stores):
        assert put(store, "poet", f"{number}").version == number + 1
    assert len(stores[0].list_versions(ME, "poet", BASE)) == 6
    for store in stores:
        store.close()

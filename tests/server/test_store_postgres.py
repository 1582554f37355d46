"""Opening a store on PostgreSQL, and what it does when the server, or the network to it, goes away."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from cdvft_server.exceptions import StoreUnavailable, UnsupportedDatabase
from cdvft_server.store import Store
from cdvft_server.store.database import Database
from cdvft_server.store.outage import RETRY_SECONDS, Breaker
from cdvft_server.store.tables import metadata
from cdvft_server.store.urls import database_url
from sqlalchemy import create_engine, text

from tests.server.postgres import SECONDS, Postgres, execute
from tests.server.proxy import Proxy
from tests.server.store_maker import BASE, ME, new, older_migrations, put

SCHEMA = "SELECT version_num FROM alembic_version"
LATEST = [("0006",)]


def test_migrations_make_the_tables(new_postgres_url: str) -> None:
    Store.open(new_postgres_url).close()
    engine = create_engine(database_url(new_postgres_url))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_an_older_schema_is_upgraded_and_keeps_its_content(
    new_postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        older_migrations(tmp_path / "older", "0003", patch)
        Store.open(new_postgres_url).close()
    assert execute(new_postgres_url, SCHEMA) == [("0003",)]
    execute(new_postgres_url, "INSERT INTO steps VALUES ('old', 1)", "INSERT INTO names VALUES ('default', 'poet', 7)")
    store = Store.open(new_postgres_url)
    assert store.step_done("old")
    assert put(store, "poet", "one").version == 8
    store.close()
    assert execute(new_postgres_url, SCHEMA) == LATEST


def test_a_newer_schema_and_other_tables_are_refused(new_postgres_url: str) -> None:
    execute(new_postgres_url, "CREATE TABLE notes (text TEXT)")
    with pytest.raises(UnsupportedDatabase, match="another program's tables"):
        Store.open(new_postgres_url)
    execute(new_postgres_url, "DROP TABLE notes")
    Store.open(new_postgres_url).close()
    execute(new_postgres_url, "UPDATE alembic_version SET version_num = '0100'")
    with pytest.raises(UnsupportedDatabase, match="has schema 0100, this version of cdvft knows it up to 0006"):
        Store.open(new_postgres_url)


def test_an_encoding_that_does_not_hold_every_text(postgres: Postgres) -> None:
    with (
        postgres.database("ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'") as url,
        pytest.raises(UnsupportedDatabase, match="encoding LATIN1, texts need UTF8"),
    ):
        Store.open(url)


def test_a_user_who_may_not(postgres: Postgres, new_postgres_url: str) -> None:
    postgres.execute("CREATE ROLE guest LOGIN PASSWORD 'secret'")
    try:
        with pytest.raises(StoreUnavailable, match="permission denied for schema public"):
            Store.open(new_postgres_url.replace("cdvft@", "guest:secret@"))
    finally:
        postgres.execute("DROP ROLE guest")


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="the database cannot be reached") as error:
        Store.open(f"postgresql://user:secret@/store?host={tmp_path}")
    assert "secret" not in str(error.value)
    assert str(tmp_path) in str(error.value)  # who starts a server is told where it looked


def test_opened_for_the_first_time_by_several_at_once(new_postgres_url: str) -> None:
    code = (
        "import sys; from cdvft_server.store import Store; sys.stdin.readline()\n"
        "store = Store.open(sys.argv[1]); store.ping(); store.close()"
    )
    command = [sys.executable, "-W", "error", "-c", code, new_postgres_url]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
    assert [process.communicate()[1].decode() for process in processes] == [""] * 3
    assert [process.returncode for process in processes] == [0] * 3
    assert execute(new_postgres_url, SCHEMA) == LATEST


def test_a_commit_is_on_disk_whatever_the_default(postgres_url: str) -> None:
    """The tests' server has synchronous_commit off."""
    assert execute(postgres_url, "SHOW synchronous_commit") == [("off",)]
    database = Database(postgres_url)
    with database.write() as connection:
        assert connection.execute(text("SHOW synchronous_commit")).scalar() == "on"
    database.close()


def test_a_reader_sees_one_state_and_writes_nothing(postgres_url: str) -> None:
    store, database = Store.open(postgres_url), Database(postgres_url)
    count = text("SELECT count(*) FROM versions")
    with database.read() as connection:
        before = connection.execute(count).scalar()
        put(store, "poet", "one")
        assert connection.execute(count).scalar() == before
    with database.read() as connection:
        assert connection.execute(count).scalar() == before + 1
    with pytest.raises(StoreUnavailable, match="read-only"), database.read() as connection:
        connection.execute(text("DELETE FROM steps"))
    database.close()
    store.close()


def test_readers_do_not_wait_for_a_writer(postgres_url: str) -> None:
    store, database = Store.open(postgres_url), Database(postgres_url)
    row = put(store, "poet", "one")
    with database.write():
        assert store.get(ME, "poet", BASE) == row
    database.close()
    store.close()


class TestAway:
    @pytest.fixture
    def proxy(self, postgres: Postgres) -> Iterator[Proxy]:
        with Proxy(str(postgres.folder / ".s.PGSQL.5432")) as proxy:
            yield proxy

    @pytest.fixture
    def far_url(self, postgres_url: str, proxy: Proxy) -> str:
        return f"postgresql://cdvft@127.0.0.1:{proxy.port}/postgres?connect_timeout={SECONDS}"

    def test_cut_and_back(self, far_url: str, proxy: Proxy) -> None:
        store = Store.open(far_url)
        row = put(store, "poet", "one")
        for _ in range(2):
            proxy.cut()
            for call in (store.ping, lambda: store.get(ME, "poet", BASE), lambda: put(store, "poet", "two")):
                with pytest.raises(StoreUnavailable, match="the database cannot be reached"):
                    call()
            proxy.restore()
            wait_for(store)
            assert store.get(ME, "poet", BASE) == row
        assert put(store, "poet", "two").version == 2
        store.close()

    def test_cut_while_an_upload_is_under_way(self, far_url: str, proxy: Proxy) -> None:
        database, store = Database(far_url), Store.open(far_url)

        def cut_halfway() -> None:
            with database.write() as connection:
                connection.execute(text("INSERT INTO steps VALUES ('half', 1)"))
                proxy.cut()

        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            cut_halfway()
        proxy.restore()
        wait_for(store)
        assert not store.step_done("half")
        database.close()
        store.close()

    def test_connections_that_were_ended_meanwhile_are_not_used(self, far_url: str, postgres: Postgres) -> None:
        """As after a restart: nobody notices."""
        store = Store.open(far_url)
        row = put(store, "poet", "one")
        for _ in range(3):
            mine = "FROM pg_stat_activity WHERE application_name = 'cdvft'"
            postgres.execute(f"SELECT pg_terminate_backend(pid, 60000) {mine}")
            assert store.get(ME, "poet", BASE) == row
        store.close()

    def test_a_server_that_stands_still(self, far_url: str, proxy: Proxy) -> None:
        """Neither an answer nor an end of the connection: the deadline ends it."""
        database = Database(far_url)

        def ask_after_it_froze() -> None:
            with database.read(0.1) as connection:
                proxy.freeze()
                connection.execute(text("SELECT 1"))

        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            ask_after_it_froze()
        proxy.restore()
        with database.read() as connection:
            assert connection.execute(text("SELECT 1")).scalar() == 1
        database.close()
        assert not [thread for thread in threading.enumerate() if thread.name == "cdvft-store-watch"]


def wait_for(store: Store) -> None:
    """Until the breaker lets an attempt through."""
    for _ in range(600):
        try:
            return store.ping()
        except StoreUnavailable:
            threading.Event().wait(0.1)
    raise AssertionError("it did not come back")


def test_the_breaker_lets_one_attempt_a_second_through() -> None:
    now = 100.0
    breaker = Breaker(3.0, clock=lambda: now)
    breaker.check()
    breaker.failed(OSError("gone"))
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        breaker.check()
    now += RETRY_SECONDS
    breaker.check()  # this one tries
    with pytest.raises(StoreUnavailable):
        breaker.check()  # others do not, while it does
    breaker.failed(OSError("gone"))
    now += RETRY_SECONDS
    breaker.check()
    breaker.worked()
    breaker.check()


def test_files_larger_than_a_page(postgres_url: str) -> None:
    store = Store.open(postgres_url)
    content = new("large", size=3_000_000, template=os.urandom(16_384))
    row, _ = store.put_version(ME, "large", content)
    assert store.files(row.id) == content.files
    store.close()

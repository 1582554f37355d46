"""What the store does when the disk, the file or another program does not play along."""

import hashlib
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cdvft.files import AdapterFiles
from cdvft_server.exceptions import CorruptBlob, NotFound, StoreUnavailable
from cdvft_server.naming import AdapterRef
from cdvft_server.store import NewVersion, Store
from sqlalchemy import event
from sqlalchemy.pool import Pool

from tests.server.store_maker import BASE, ME, new, put, url_of


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(url_of(tmp_path))
    yield opened
    opened.close()


class TestCorruption:
    def damage(self, folder: Path, statement: str) -> None:
        connection = sqlite3.connect(folder / "store.db")
        connection.execute(statement)
        connection.commit()
        connection.close()

    def test_changed_bytes_are_noticed_and_hurt_nobody_else(self, store: Store, tmp_path: Path) -> None:
        good, bad = put(store, "good", "one"), put(store, "bad", "two")
        self.damage(tmp_path, f"UPDATE blobs SET data = zeroblob(100) WHERE sha256 = '{weights_key('two')}'")
        with pytest.raises(CorruptBlob, match="weights of version id"):
            store.files(bad.id)
        assert store.files(good.id) == new("one").files
        assert store.resolve(ME, AdapterRef(None, "bad"), BASE) == bad

    @pytest.mark.parametrize("table", ["blobs", "version_files"])
    def test_lost_bytes_are_noticed(self, store: Store, tmp_path: Path, table: str) -> None:
        row = put(store, "bad", "two")
        self.damage(tmp_path, f"DELETE FROM {table} WHERE sha256 = '{weights_key('two')}'")
        with pytest.raises(CorruptBlob, match=r"weights|lost a file"):
            store.files(row.id)

    @pytest.mark.parametrize("name", ["bad", "another"])
    def test_the_same_bytes_uploaded_again_repair_it(self, store: Store, tmp_path: Path, name: str) -> None:
        row = put(store, "bad", "two")
        self.damage(tmp_path, "UPDATE blobs SET data = zeroblob(1)")
        again = put(store, name, "two")
        assert store.files(row.id) == store.files(again.id) == new("two").files

    @pytest.mark.parametrize("value", ["7", "1.5", "'text'", "cast(x'80ff00' AS TEXT)"])
    def test_bytes_of_another_type_are_noticed_and_repaired(self, store: Store, tmp_path: Path, value: str) -> None:
        """SQLite's columns take values of any type."""
        row = put(store, "bad", "two")
        self.damage(tmp_path, f"UPDATE blobs SET data = {value} WHERE sha256 = '{weights_key('two')}'")
        with pytest.raises(CorruptBlob, match="weights of version id"):
            store.files(row.id)
        assert put(store, "bad", "two") == row
        assert store.files(row.id) == new("two").files
        self.damage(tmp_path, "UPDATE blobs SET data = cast(data AS TEXT), size = 'many'")  # the bytes are the same
        assert store.files(row.id) == new("two").files
        assert store.delete(ME, "bad", None, BASE).bytes_freed == 0

    @pytest.mark.parametrize("statement", ["UPDATE blobs SET data = zeroblob(1)", "DELETE FROM version_files"])
    def test_other_bytes_of_the_same_content_replace_lost_ones(
        self, store: Store, tmp_path: Path, statement: str
    ) -> None:
        """The config may be spelled in another way: then the files are the second upload's, all of them."""
        row = put(store, "bad", "two")
        files = AdapterFiles(b'{ "peft_type": "CDVFT" }', new("two").files.weights)
        spelled = replace(new("two"), files=files)
        store.put_version(ME, "bad", spelled)
        assert store.files(row.id) == new("two").files  # whole: the first upload's stay
        self.damage(tmp_path, statement)
        again, created = store.put_version(ME, "bad", spelled)
        assert (again.id, again.bytes, created) == (row.id, files.size, False)
        assert store.files(row.id) == files
        assert store.delete(ME, "bad", None, BASE).bytes_freed == files.size

    def test_columns_of_another_type_are_given_back_as_they_are(self, store: Store, tmp_path: Path) -> None:
        good, row = put(store, "good", "one"), put(store, "bad", "two")
        for column, value in (("summary", "cast(x'7bff' AS TEXT)"), ("form_labels", "'[1'"), ("created_at", "'new'")):
            self.damage(tmp_path, f"UPDATE versions SET {column} = {value} WHERE id = {row.id}")
        [bad, same], _ = store.list_adapters(ME, BASE)
        assert same == good
        assert (bad.summary, bad.form_labels, bad.created_at) == ("{\udcff", "[1", "new")
        mended = store.mend(bad, new("two"))
        assert mended == store.get(ME, "bad", BASE) == replace(row, created_at=mended.created_at)
        assert isinstance(mended.created_at, int)
        store.delete(ME, "bad", None, BASE)
        with pytest.raises(NotFound, match="'bad'"):
            store.mend(bad, new("two"))


def weights_key(text: str) -> str:
    return hashlib.sha256(new(text).files.weights).hexdigest()


class TestUnavailable:
    def test_closed(self, tmp_path: Path) -> None:
        store = Store.open(url_of(tmp_path))
        store.ping()
        store.close()
        store.close()
        with pytest.raises(StoreUnavailable, match="closed"):
            store.ping()

    def test_read_only(self, tmp_path: Path) -> None:
        store = Store.open(url_of(tmp_path))
        row = put(store, "poet", "one")
        store.close()
        store = Store.open(f"sqlite:///file:{tmp_path}/store.db?mode=ro&uri=true")
        assert store.files(row.id) == new("one").files
        with pytest.raises(StoreUnavailable, match="readonly"):
            put(store, "poet", "two")
        assert store.resolve(ME, AdapterRef(None, "poet"), BASE) == row
        store.close()

    def test_disk_full(self, store: Store, tmp_path: Path, full_disk: None) -> None:
        small = Store.open(url_of(tmp_path))
        row = put(small, "poet", "one")
        with pytest.raises(StoreUnavailable, match="full"):
            small.put_version(ME, "poet", new("two", size=10_000_000), alias="prod")
        assert small.list_versions(ME, "poet", BASE) == [row]
        assert put(small, "poet", "three").version == 2  # small enough
        small.close()

    @pytest.fixture
    def full_disk(self) -> Iterator[None]:
        """Databases opened from here on may hold 100 pages more: SQLite's own 'database or disk is full'."""

        def limit(connection: sqlite3.Connection, _: object) -> None:
            connection.execute("PRAGMA max_page_count=200")

        event.listen(Pool, "connect", limit)
        yield
        event.remove(Pool, "connect", limit)

    def test_locked_by_another_program(self, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("cdvft_server.store.sqlite.BUSY_SECONDS", 0.05)
        impatient = Store.open(url_of(tmp_path))
        row = put(impatient, "poet", "one")
        other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked"):
            put(impatient, "poet", "two")
        assert impatient.resolve(ME, AdapterRef(None, "poet"), BASE) == row  # reading goes on
        other.execute("COMMIT")
        other.close()
        assert put(impatient, "poet", "two").version == 2
        impatient.close()

    @pytest.mark.parametrize("replaced", [False, True])
    def test_a_file_that_was_removed_or_replaced(self, store: Store, tmp_path: Path, replaced: bool) -> None:
        """Not written to any more, and told; open connections read on, and no new one is made to another file."""
        row = put(store, "poet", "one")
        path = tmp_path / "store.db"
        if replaced:
            shutil.copy(path, tmp_path / "copy.db")
            os.replace(tmp_path / "copy.db", path)
        else:
            path.unlink()
        for call in (store.ping, lambda: put(store, "poet", "two"), lambda: store.count_hits({row.id: 1}, 1)):
            with pytest.raises(StoreUnavailable, match="removed or replaced while the server ran: restart"):
                call()
        assert store.get(ME, "poet", BASE) == row
        with store._database.read(), pytest.raises(StoreUnavailable, match="removed or replaced"):
            store.get(ME, "poet", BASE)  # the one connection is in use, this needs a new one
        assert path.exists() == replaced
        store.close()
        again = Store.open(url_of(tmp_path))
        again.ping()
        again.close()

    def test_a_file_that_was_moved_back(self, store: Store, tmp_path: Path) -> None:
        put(store, "poet", "one")
        os.rename(tmp_path / "store.db", tmp_path / "away.db")
        with pytest.raises(StoreUnavailable):
            store.ping()
        os.rename(tmp_path / "away.db", tmp_path / "store.db")
        store.ping()
        assert put(store, "poet", "two").version == 2

    def test_an_error_of_ours_is_not_the_databases(self, store: Store) -> None:
        with pytest.raises(Exception, match="NOT NULL"):
            store.put_version(ME, "poet", NewVersion(new("x").files, None, BASE, None, {}))  # type: ignore[arg-type]
        assert store.list_adapters(ME, BASE) == ([], False)


def test_readers_do_not_wait_for_a_writer(store: Store, tmp_path: Path) -> None:
    row = put(store, "poet", "one")
    writer = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    done = threading.Event()

    def read() -> None:
        assert store.resolve(ME, AdapterRef(None, "poet"), BASE) == row
        done.set()

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    writer.execute("ROLLBACK")
    writer.close()
    assert done.is_set()

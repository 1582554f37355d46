"""Many threads on one store: numbers without gaps, pointers that always point, never half of anything."""

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from cdvft_server.exceptions import Conflict, NotFound
from cdvft_server.naming import AdapterRef, Alias
from cdvft_server.store import Store, VersionRow

from tests.server.store_maker import BASE, ME, digest_of, new, put

THREADS, ROUNDS = 6, 12
NAMES = ("a", "b")


def check(store: Store, row: VersionRow) -> None:
    """The row is of one moment, and its files are its own."""
    assert row.digest == digest_of(row.summary["text"])
    assert row.aliases["latest"] >= 1
    assert row.form_labels is None
    assert store.files(row.id) == new(row.summary["text"]).files


def together(work: Callable[[int], list[VersionRow]], count: int = THREADS) -> list[list[VersionRow]]:
    barrier = threading.Barrier(count)

    def begin(worker: int) -> list[VersionRow]:
        barrier.wait()
        return work(worker)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(begin, range(count)))


def test_versions_are_unique_and_without_gaps(store_url: str) -> None:
    store = Store.open(store_url)

    def work(worker: int) -> list[VersionRow]:
        rows = []
        for number in range(ROUNDS):
            row = put(store, NAMES[number % 2], f"{worker} {number}", alias=f"of-{worker}")
            rows.append(row)
            assert row.aliases[f"of-{worker}"] == row.aliases["latest"] == row.version
            check(store, row)
            resolved = store.resolve(ME, AdapterRef(None, row.name, Alias(f"of-{worker}")), BASE)
            assert resolved.digest == row.digest  # nobody else moves this alias
            for seen in store.list_versions(ME, row.name, BASE):
                assert seen.aliases["latest"] >= row.version
        return rows

    rows = [row for part in together(work) for row in part]
    for name in NAMES:
        numbers = sorted(row.version for row in rows if row.name == name)
        assert numbers == list(range(1, THREADS * ROUNDS // 2 + 1))
        assert store.get(ME, name, BASE).version == len(numbers)
    store.close()


def test_several_servers_on_one_file(store_url: str) -> None:
    """Each opens the file for itself, as processes do: a writer waits for another's transaction, from its beginning."""
    stores = [Store.open(store_url) for _ in range(3)]

    def work(worker: int) -> list[VersionRow]:
        return [put(stores[worker], "a", f"{worker} {number}") for number in range(ROUNDS)]

    rows = [row for part in together(work, 3) for row in part]
    assert sorted(row.version for row in rows) == list(range(1, 3 * ROUNDS + 1))
    for store in stores:
        assert store.get(ME, "a", BASE).version == len(rows)
        store.close()


def test_one_content_uploaded_by_all_is_one_version(store_url: str) -> None:
    store = Store.open(store_url)
    created: list[bool] = []

    def work(_: int) -> list[VersionRow]:
        rows = []
        for number in range(ROUNDS):
            row, is_new = store.put_version(ME, "a", new(f"{number}"))
            created.append(is_new)
            rows.append(row)
        return rows

    parts = together(work)
    assert sum(created) == ROUNDS
    for number in range(ROUNDS):
        assert len({part[number].id for part in parts}) == 1
    assert [row.version for row in store.list_versions(ME, "a", BASE)] == list(range(ROUNDS, 0, -1))
    store.close()


def test_alias_moves_and_deletes_never_show_half(store_url: str) -> None:
    """Writers churn, readers resolve by alias: every answer is a whole version, or none."""
    store = Store.open(store_url)
    put(store, "a", "first", alias="stable")
    stop = threading.Event()

    def read(_: int) -> int:
        seen = 0
        while not stop.is_set() or not seen:
            row = store.resolve(ME, AdapterRef(None, "a", Alias("stable")), BASE)
            assert row.aliases["stable"] == row.version == 1
            check(store, row)
            for listed in store.list_adapters(ME, BASE)[0]:
                assert listed.aliases["latest"] == listed.version
            versions = store.list_versions(ME, "a", BASE)
            assert set(versions[0].aliases.values()) <= {version.version for version in versions}
            seen += 1
        return seen

    def write(worker: int) -> list[VersionRow]:
        choose = random.Random(worker)
        for number in range(ROUNDS):
            row = put(store, "a", f"{worker} {number}", alias=choose.choice([None, "canary", f"mine-{worker}"]))
            try:
                match choose.randrange(3):
                    case 0:
                        store.set_alias(ME, "a", "latest", 1, BASE)
                    case 1:
                        store.set_alias(ME, "a", "canary", row.version, BASE)
                    case 2:
                        store.delete(ME, "a", row.version, BASE)
            except (Conflict, NotFound):
                assert row.version != 1
        return []

    with ThreadPoolExecutor(2) as readers:
        reading = [readers.submit(read, number) for number in range(2)]
        try:
            together(write, 3)
        finally:
            stop.set()
        assert all(future.result() > 0 for future in reading)
    assert put(store, "a", "last").version == 3 * ROUNDS + 2
    store.close()


def test_more_threads_than_connections(store_url: str) -> None:
    store = Store.open(store_url)
    row = put(store, "a", "a")

    def work(_: int) -> list[VersionRow]:
        return [store.get(ME, "a", BASE) for _ in range(3)]

    assert all(found == [row] * 3 for found in together(work, 48))
    store.close()

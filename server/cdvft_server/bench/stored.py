"""A fleet in a store of its own, and its way from there to the device."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cdvft.baseinfo import BaseInfo
from cdvft.checkpoint import adapter_files, freeze, read_adapter
from cdvft.prepared import PreparedAdapter, prepare_adapter

from cdvft_server.bench.fleet import Fleet
from cdvft_server.engine import AdapterPool, Lease
from cdvft_server.store import NewVersion, Store, Upload, VersionRow

__all__ = ["Stored", "stored_fleet"]

TENANT = "bench"


class Stored:
    """`rows[k]` is adapter k. `sources` are the places from which an adapter can be loaded, by name."""

    def __init__(self, store: Store, base: BaseInfo, rows: list[VersionRow]) -> None:
        self.store, self.base, self.rows = store, base, rows
        self._host: dict[int, PreparedAdapter] = {}
        self.sources: Mapping[str, Callable[[VersionRow], PreparedAdapter]] = {"store": self.read, "host": self.keep}

    def read(self, row: VersionRow) -> PreparedAdapter:
        """Store read, parse and check, prepare: what a server does for an adapter that is not in memory."""
        return prepare_adapter(read_adapter(self.store.files(row.id), self.base, row.form_labels))

    def keep(self, row: VersionRow) -> PreparedAdapter:
        """In serving form in the host's memory, as the host cache has it; read at the first time."""
        if row.id not in self._host:
            self._host[row.id] = self.read(row)
        return self._host[row.id]

    def load(self, number: int, pool: AdapterPool, source: str = "store") -> Lease:
        """Onto the device. Raises PoolFull."""
        return pool.place(self.sources[source](self.rows[number]))


@contextmanager
def stored_fleet(fleet: Fleet, count: int, folder: Path) -> Iterator[Stored]:
    """`count` adapters, each drawn by itself, written in one transaction."""
    store = Store.open(f"sqlite:///{folder.absolute() / 'fleet.db'}")
    try:
        uploads = []
        for number in range(count):
            adapter = fleet.adapter(number)
            files = freeze(adapter_files(adapter, fleet.base), adapter)
            new = NewVersion(files, adapter.digest, fleet.base.digest, None, {})
            uploads.append(Upload(f"adapter-{number}", new))
        rows = [row for row, _ in store.put_step(TENANT, "fleet", uploads)]
        yield Stored(store, fleet.base, rows)
    finally:
        store.close()

"""The cases of `cdvft bench`, each a generator of rows."""

from collections.abc import Callable, Iterator, Mapping

from cdvft_server.bench.bench import Bench, Row
from cdvft_server.bench.cases.http import http
from cdvft_server.bench.cases.merged import merged
from cdvft_server.bench.cases.overhead import overhead
from cdvft_server.bench.cases.peers import peers
from cdvft_server.bench.cases.residency import residency

__all__ = ["RUNNERS"]

RUNNERS: Mapping[str, Callable[[Bench], Iterator[Row]]] = {
    "overhead": overhead,
    "residency": residency,
    "merged": merged,
    "peers": peers,
    "http": http,
}

"""How soon an adapter answers: after its upload over HTTP, and from the store; what it takes on the device."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from cdvft.checkpoint import adapter_files, freeze, write_folder
from cdvft.prepared import prepare_adapter
from cdvft_client import Client

from cdvft_server.bench.bench import Bench, Row
from cdvft_server.bench.cases.crowding import crowding
from cdvft_server.bench.fleet import Fleet
from cdvft_server.bench.live import live, own_config
from cdvft_server.bench.stored import stored_fleet
from cdvft_server.bench.timing import milliseconds
from cdvft_server.engine import AdapterPool

__all__ = ["residency"]

WARM_UP = 1  # adapters whose time is not counted


def residency(bench: Bench) -> Iterator[Row]:
    """Each of `--runs` adapters is another one; then traffic over more adapters than fit."""
    backbone = bench.load()
    fleet = bench.fleet(backbone)
    with tempfile.TemporaryDirectory(prefix="cdvft-bench-") as folder:
        yield _upload(bench, fleet, Path(folder))
        yield from _cold_loads(bench, fleet, backbone.device, Path(folder))
    yield _device_bytes(bench, fleet)
    yield from crowding(bench, backbone, fleet)


def _upload(bench: Bench, fleet: Fleet, folder: Path) -> Row:
    """From the first byte of the upload to the whole first answer, a label or one token, over one connection."""
    settings, seconds = bench.settings, []
    for number in range(WARM_UP + settings.runs):
        adapter = fleet.adapter(number)
        write_folder(folder / str(number), freeze(adapter_files(adapter, fleet.base), adapter))
    with live(own_config(bench, folder)) as running, Client(running.url) as client:
        for number in range(WARM_UP + settings.runs):
            text = bench.texts[number % len(bench.texts)]
            start = time.perf_counter()
            client.upload(folder / str(number), name=f"adapter-{number}")
            if settings.task == "classify":
                client.classify(f"adapter-{number}", text, truncate=True)
            else:
                client.complete(f"adapter-{number}", text, max_tokens=1)
            seconds.append(time.perf_counter() - start)
    times = milliseconds(seconds[WARM_UP:])
    return bench.row("residency", "upload to first answer", upload_to_first_answer_ms=times["p50_ms"], **times)


def _cold_loads(bench: Bench, fleet: Fleet, device: object, folder: Path) -> Iterator[Row]:
    """From every place that an adapter can be loaded from, to a bank's row; the adapter is forgotten after it."""
    runs = bench.settings.runs
    with stored_fleet(fleet, WARM_UP + runs, folder) as stored:
        pool = AdapterPool(str(device), 4 * prepare_adapter(fleet.adapter(0)).least_memory)
        for row in stored.rows:
            stored.keep(row)
        for source in stored.sources:
            seconds = []
            for number in range(WARM_UP + runs):
                start = time.perf_counter()
                lease = stored.load(number, pool, source)
                seconds.append(time.perf_counter() - start)
                lease.release()
                pool.discard(lease.digest)
            times = milliseconds(seconds[WARM_UP:])
            yield bench.row("residency", f"cold load from the {source}", cold_load_ms=times["p50_ms"], **times)


def _device_bytes(bench: Bench, fleet: Fleet) -> Row:
    """A bank's row over the trained numbers of its adapter in fp32, both without the head."""
    adapter = fleet.adapter(0)
    prepared = prepare_adapter(adapter)
    return bench.row(
        "residency",
        "device bytes of a row over its numbers' in fp32",
        device_bytes_ratio=round(prepared.nbytes / (4 * adapter.num_parameters), 4),
        row_bytes=prepared.nbytes,
        shared_bytes=prepared.shared_nbytes,
    )

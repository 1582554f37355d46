"""The numbers of a running server, for `/metrics`."""

from collections.abc import Mapping
from dataclasses import dataclass

from cdvft.kernels import Choice

from cdvft_server.engine.engine import Engine
from cdvft_server.engine.merged import MergedPool
from cdvft_server.engine.pool import AdapterPool
from cdvft_server.service.loads import LoadTimes, Times

__all__ = ["Gauges", "read_gauges"]


@dataclass(frozen=True)
class Gauges:
    """Name -> (what it is, value). Gauges go up and down, counters only up. A histogram's value has one for each
    `source`. `kernel` runs CDVFT's products."""

    gauges: dict[str, tuple[str, float]]
    counters: dict[str, tuple[str, float]]
    histograms: dict[str, tuple[str, Mapping[str, Times]]]
    kernel: Choice


def read_gauges(engine: Engine, adapters: AdapterPool, merged: MergedPool, calls: int, times: LoadTimes) -> Gauges:
    stats, pool, host, whole = engine.stats(), adapters.stats(), adapters.host.stats(), merged.stats()
    return Gauges(
        gauges={
            "calls_in_flight": ("Uses of adapters that have not ended", calls),
            "requests_waiting": ("Engine requests that wait", stats.waiting),
            "requests_running": ("Engine requests in batches", stats.running),
            "kv_tokens_used": ("KV tokens reserved", stats.kv_tokens_used),
            "kv_tokens": ("KV tokens there are", stats.kv_tokens_total),
            "adapters_resident": ("Adapters on the device", pool.adapters),
            "adapters_pinned": ("Adapters that never leave the device", pool.pinned),
            "adapters_on_host": ("Adapters in the host's memory, behind the device", host.adapters),
            "adapter_leases": ("Adapters on the device that requests use", pool.leased),
            "adapter_rows": ("Bank rows, free ones too", pool.rows),
            "adapter_bytes_used": ("Bytes of banks and heads", pool.bytes_used),
            "adapter_bytes": ("Bytes that adapters may have", pool.budget_bytes),
            "adapters_merged": ("Adapters with merged weights on the device", whole.adapters),
            "merged_bytes_used": ("Bytes of merged weights", whole.bytes_used),
            "merged_bytes": ("Bytes that merged weights may have", whole.budget_bytes),
            "host_bytes_used": ("Bytes of adapters on the host", host.bytes_used),
            "host_bytes": ("Bytes that adapters may have on the host", host.budget_bytes),
        },
        counters={
            "batches": ("Forward passes", stats.batches),
            "tokens": ("Tokens through the model", stats.tokens),
            "generated_tokens": ("Tokens generated", stats.generated),
            "requests_finished": ("Engine requests that ended well or were cancelled", stats.finished),
            "requests_failed": ("Engine requests that failed", stats.failed),
            "batches_retried": ("Batches that failed as a whole", stats.retried),
            "tokens_unmerged": ("Tokens through the model with an adapter beside the base's weights", stats.unmerged),
            "tokens_merged": ("Tokens through the model with merged weights", stats.merged),
            "mergings": ("Adapters whose weights were merged", whole.placed),
            "merged_evicted": ("Adapters whose merged weights were evicted", whole.evicted),
            "adapters_placed": ("Adapters copied to the device", pool.placed),
            "adapters_evicted": ("Adapters evicted from the device", pool.evicted),
            "adapters_evicted_from_host": ("Adapters evicted from the host", host.evicted),
        },
        histograms={
            "adapter_load_seconds": ("Time until an adapter that is wanted is on the device, by source", times.read())
        },
        kernel=engine.kernel,
    )

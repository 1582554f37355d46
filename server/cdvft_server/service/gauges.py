"""The numbers of a running server, for `/metrics`."""

from collections.abc import Mapping
from dataclasses import dataclass

from cdvft.kernels import Choice

from cdvft_server.engine.capture import Recording
from cdvft_server.engine.engine import Engine, EngineStats
from cdvft_server.engine.histogram import Spread
from cdvft_server.service.ledger import Ledger
from cdvft_server.service.loads import LoadTimes
from cdvft_server.service.parts import Parts

__all__ = ["Gauges", "RouterView", "read_gauges"]

MOST_NAMES = 100  # of adapters in one label


@dataclass(frozen=True)
class RouterView:
    """What routers in front of several servers choose by, in vLLM's words. `kv_usage` is 0 to 1. `max_adapters`: how
    many one batch may mix. `running` and `waiting`: public adapters that requests use, or wait for."""

    model: str
    requests_waiting: int
    requests_running: int
    kv_usage: float
    max_adapters: int
    running: list[str]
    waiting: list[str]


@dataclass(frozen=True)
class Gauges:
    """Name -> (what it is, value). Gauges go up and down, counters only up. What is `by_source` has a value for each
    label `source`. `kernel` runs CDVFT's products, `attention` computes attention, `recording` says whether decode
    steps are recorded."""

    gauges: dict[str, tuple[str, float]]
    counters: dict[str, tuple[str, float]]
    histograms: dict[str, tuple[str, Spread]]
    by_source: dict[str, tuple[str, Mapping[str, Spread]]]
    kernel: Choice
    attention: str
    recording: Recording
    router: RouterView


def read_gauges(parts: Parts, times: LoadTimes) -> Gauges:
    """`times`: of loads."""
    engine, ledger, pool, whole = parts.engine, parts.ledger, parts.pool.stats(), parts.merged.stats()
    stats, host, meters, used = engine.stats(), parts.pool.host.stats(), engine.meters, ledger.totals()
    return Gauges(
        gauges={
            "calls_in_flight": ("Uses of adapters that have not ended", parts.flights.count),
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
            "graphs": ("Recorded decode steps on the device", stats.graphs),
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
            "graph_replays": ("Batches of decode steps that were repeated from recordings", stats.graph_replays),
            "graphs_refused": ("Recordings that failed, or gave something else than they should", stats.graphs_refused),
            "mergings": ("Adapters whose weights were merged", whole.placed),
            "merged_evicted": ("Adapters whose merged weights were evicted", whole.evicted),
            "prompt_tokens": ("Prompt tokens that went into the usage ledger", used.prompt_tokens),
            "completion_tokens": ("Generated tokens that went into the usage ledger", used.completion_tokens),
            "inference_seconds_used": ("Seconds of the engine that went into the usage ledger", used.seconds),
            "usage_lost": ("Requests that the ledger could not keep while the store was away", ledger.lost),
            "adapters_placed": ("Adapters copied to the device", pool.placed),
            "adapters_evicted": ("Adapters evicted from the device", pool.evicted),
            "adapters_evicted_from_host": ("Adapters evicted from the host", host.evicted),
        },
        histograms={
            "queue_seconds": ("Time from a request's arrival to its first batch", meters.queue.read()),
            "first_token_seconds": ("Time from a request's arrival to its first token", meters.first_token.read()),
            "token_seconds": ("Time between two tokens of one request", meters.token.read()),
            "inference_seconds": ("Time from a request's first batch to its end", meters.inference.read()),
            "step_seconds": ("Time of a forward pass and what follows from it", meters.step_seconds.read()),
            "batch_tokens": ("Tokens of a batch", meters.batch_tokens.read()),
            "batch_requests": ("Requests of a batch", meters.batch_requests.read()),
        },
        by_source={
            "adapter_load_seconds": ("Time until an adapter that is wanted is on the device, by source", times.read())
        },
        kernel=engine.kernel,
        attention=engine.attention,
        recording=engine.recording,
        router=_router_view(engine, stats, ledger),
    )


def _router_view(engine: Engine, stats: EngineStats, ledger: Ledger) -> RouterView:
    running, waiting = ledger.names(MOST_NAMES)
    return RouterView(
        model=engine.backbone.info.name,
        requests_waiting=stats.waiting,
        requests_running=stats.running,
        kv_usage=stats.kv_tokens_used / (stats.kv_tokens_total or 1),
        max_adapters=engine.config.max_batch_tokens,
        running=running,
        waiting=waiting,
    )

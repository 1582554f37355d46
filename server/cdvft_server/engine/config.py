"""What an engine can be told, what it counts, and the KV memory that follows from it."""

from dataclasses import asdict, dataclass
from typing import Literal, get_args

import torch
from cdvft.backbone import Backbone
from cdvft.kernels import Wanted

from cdvft_server.engine.capture import CudaGraphs
from cdvft_server.engine.core import Counters
from cdvft_server.engine.kv import KvArena
from cdvft_server.engine.runners import kv_arena, kv_shape

__all__ = ["EngineConfig", "EngineStats", "longest_input", "make_arena"]

Scheduling = Literal["fair", "fifo"]

KV_BYTES = 1 << 30  # default memory for keys and values on the CPU
KV_SHARE = 0.4  # and on an accelerator: of what is free
KV_CONTEXTS = 64  # but never more than this many whole contexts by default


@dataclass(frozen=True)
class EngineConfig:
    """`context_length` None: the base's longest input. `kv_tokens` None: what 1 GiB holds on the CPU (40% of the free
    memory on an accelerator), at most 64 contexts; a context longer than the arena is served up to the arena's size.
    `threads`: of torch, in the engine's thread alone; None: as many as everywhere else. `fit_costs`: measure the cost
    model at start. `kernel`: CDVFT's fast path, by `cdvft.kernels`. `scheduling`: fair between tenants, or "fifo": in
    order of arrival, whoever asks. `cuda_graphs`: whether decode steps are recorded, by `capture.recording_of`."""

    max_batch_tokens: int = 2048
    context_length: int | None = None
    kv_tokens: int | None = None
    max_queue: int = 1024
    threads: int | None = None
    fit_costs: bool = False
    kernel: Wanted = "auto"
    scheduling: Scheduling = "fair"
    cuda_graphs: CudaGraphs = "auto"

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, int) and name != "fit_costs" and value < 1:
                raise ValueError(f"{name} must be at least 1, it is {value}")
        for name, value, known in (
            ("scheduling", self.scheduling, get_args(Scheduling)),
            ("cuda_graphs", self.cuda_graphs, get_args(CudaGraphs)),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, it is {value!r}")


@dataclass
class EngineStats(Counters):
    """Gauges beside the counters. Encoders have no KV: both sizes are 0. `graphs`: recorded decode steps that are held;
    `graph_replays` batches were repeated from them, `graphs_refused` recordings failed or gave something else."""

    waiting: int = 0
    running: int = 0
    kv_tokens_used: int = 0
    kv_tokens_total: int = 0
    graphs: int = 0
    graph_replays: int = 0
    graphs_refused: int = 0


def longest_input(backbone: Backbone, config: EngineConfig) -> int:
    """Tokens. Raises ValueError where more are asked for than the base takes."""
    longest = backbone.info.max_length
    if config.context_length is not None and config.context_length > longest:
        raise ValueError(f"context_length must be at most the base's {longest}, it is {config.context_length}")
    return config.context_length or longest


def make_arena(backbone: Backbone, config: EngineConfig, context: int) -> KvArena | None:
    """`kv_tokens`, or what the default memory holds (see EngineConfig)."""
    if config.kv_tokens is not None:
        return kv_arena(backbone, config.kv_tokens)
    memory = KV_BYTES
    if backbone.device.type == "cuda":
        memory = int(torch.cuda.mem_get_info(backbone.device)[0] * KV_SHARE)
    fitting = memory // KvArena.token_bytes(dtype=backbone.dtype, **kv_shape(backbone))
    return kv_arena(backbone, min(fitting, KV_CONTEXTS * context))

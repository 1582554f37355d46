"""What records decode steps on a GPU, and whether this machine and base can: the one place that decides, and says why.

`CudaRecorder` was never run: no GPU was at hand. It follows the documentation of torch 2.13.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, Protocol, TypeVar

import torch
from cdvft.backbone import Backbone
from torch import Tensor

from cdvft_server.engine.attention import Kernel

__all__ = ["CudaGraphs", "CudaRecorder", "Recorder", "Recording", "recording_of"]

T = TypeVar("T")
CudaGraphs = Literal["auto", "on", "off"]
MAX_HEAD_DIM = 256  # of spans.py, which only Triton can import
SPARE_PLANS = 64


class Recorder(Protocol):
    """Repeats a function's device work without its host work."""

    def attention(self, start: Tensor, length: Tensor) -> Kernel:
        """Attention of decode steps that can be recorded: spans `[start[t], start[t] + length[t])`, read at each
        call."""

    def record(self, function: Callable[[], T]) -> Callable[[], T]:
        """A call that repeats the work on the same tensors, with what is in them then, and returns the tensors that
        `function` did: they hold the results until anything of this recorder's is repeated. `function` is run before,
        so it must bear being run several times."""

    def intact(self) -> bool:
        """Whether all recordings may still be repeated; once it says no, none may."""


@dataclass(frozen=True)
class Recording:
    """Whether decode steps are recorded, and the reason, for people."""

    on: bool
    reason: str


def recording_of(backbone: Backbone, wanted: CudaGraphs) -> Recording:
    """Raises ValueError where recording is asked for and cannot be."""
    if wanted == "off":
        return Recording(False, "asked for")
    problem = _problem(backbone)
    if problem is None:
        return Recording(True, "asked for" if wanted == "on" else "the device is cuda")
    if wanted == "on":
        raise ValueError(f"CUDA graphs cannot be had: {problem}; use auto or off")
    return Recording(False, problem)


def _problem(backbone: Backbone) -> str | None:
    config = backbone.config
    if backbone.device.type != "cuda" or torch.version.cuda is None:
        return f"the device is {backbone.device.type}" if torch.version.cuda else "this torch has no CUDA"
    if find_spec("triton") is None:
        return "triton is not installed"
    if backbone.lm_head is None:
        return "the base generates nothing"
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return None if head_dim <= MAX_HEAD_DIM else f"heads of {head_dim} numbers; the kernel takes {MAX_HEAD_DIM}"


class CudaRecorder:
    """CUDA graphs in one memory pool: they never run at once, and results are read before the next one runs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def attention(self, start: Tensor, length: Tensor) -> Kernel:
        from cdvft_server.engine.spans import SpanAttention

        return SpanAttention(start, length)

    def record(self, function: Callable[[], T]) -> Callable[[], T]:
        """The first call, on the stream of the recording, compiles kernels, makes FFT plans and workspaces: none of
        that may happen while a stream is captured. Other threads may go on using the device (`thread_local`)."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device):
            serving = torch.cuda.current_stream()
            self._stream.wait_stream(serving)
            # the outer block gives the serving stream back where a failed capture leaves the inner one by an exception
            with torch.cuda.stream(self._stream):
                function()
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                    results = function()
            serving.wait_stream(self._stream)

        def repeat() -> T:
            graph.replay()  # on the serving stream: after the batch's inputs, before whoever reads the results
            return results

        return repeat

    def intact(self) -> bool:
        """cuFFT plans live in a cache of torch's that destroys the oldest once it is full, and nothing says that a
        graph outlives the plan it was captured with."""
        cache = torch.backends.cuda.cufft_plan_cache[self._device]
        return bool(cache.size + SPARE_PLANS < cache.max_size)

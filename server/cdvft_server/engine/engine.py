"""The engine: one thread that steps while there is work. Knows no HTTP, no asyncio, no text.

A request is refused at `submit` or gets exactly one terminal event, on cancel, failure and shutdown too.
"""

import threading
import time
from collections.abc import Callable, Collection
from collections.abc import Sequence as AbstractSequence
from concurrent.futures import Future
from dataclasses import asdict
from typing import TypeVar

import torch
from cdvft.backbone import Backbone
from cdvft.kernels import Choice, machine_choice
from cdvft.linear import AdapterContext, adapt
from cdvft.prepared import PreparedAdapter

from cdvft_server.engine.admission import Draining, Limits, QueueFull, RequestRefused
from cdvft_server.engine.allowlist import refuse_unsupported
from cdvft_server.engine.attention import ATTENTION
from cdvft_server.engine.batch import Request, Sequence
from cdvft_server.engine.capture import CudaRecorder, Recorder, Recording, recording_of
from cdvft_server.engine.config import EngineConfig, EngineStats, longest_input, make_arena
from cdvft_server.engine.core import Core
from cdvft_server.engine.costs import CostModel, fit_costs
from cdvft_server.engine.graphs import GraphRunner
from cdvft_server.engine.pace import ACCELERATOR, CPU
from cdvft_server.engine.pool import AdapterPool
from cdvft_server.engine.proof import probe_adapter, prove_packing
from cdvft_server.engine.runners import Runner
from cdvft_server.engine.scheduler import Scheduler

__all__ = ["Engine", "EngineConfig", "EngineStats"]

T = TypeVar("T")


class Engine:
    """Serves one backbone. `submit`, `cancel`, `probe`, `stats`, `waiting`, `hurried` and `stop` may be called from any
    thread."""

    def __init__(
        self,
        backbone: Backbone,
        pool: AdapterPool,
        config: EngineConfig | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        """Adapts the backbone's layers in place. `recorder` records a decoder's steps, whatever the config says of CUDA
        graphs. Raises UnsupportedBase where the allow-list refuses the base's config, ValueError for what is asked for
        and cannot be."""
        self.config = config or EngineConfig()
        self._recording = (
            recording_of(backbone, self.config.cuda_graphs)
            if recorder is None
            else Recording(True, "a recorder was given")
        )
        if recorder is None and self._recording.on:
            recorder = CudaRecorder(backbone.device)
        self.backbone = backbone
        longest = longest_input(backbone, self.config)
        self._arena = make_arena(backbone, self.config, longest)
        self.context_length = longest if self._arena is None else min(longest, self._arena.size)
        refuse_unsupported(backbone, self.context_length)
        self._context = AdapterContext(self.config.kernel)
        adapt(backbone.model, backbone.info.sites, self._context)
        backbone.model.config._attn_implementation = ATTENTION
        self._limits = _limits(backbone, self.context_length)
        self._scheduler = Scheduler(
            self._arena,
            self.config.max_batch_tokens,
            fair=self.config.scheduling == "fair",
            sizes=CPU if backbone.device.type == "cpu" else ACCELERATOR,
        )
        if recorder is None or self._arena is None:
            self._runner = Runner(backbone, self._context, self._arena)
        else:
            self._runner = GraphRunner(backbone, self._context, self._arena, recorder)
        self._core = Core(backbone, pool, self._runner, self._scheduler, forget=self._forget, let_in=self._let_in)
        self.meters = self._core.meters
        self._changed = threading.Condition()  # guards what follows
        self._live: dict[str, Sequence] = {}
        self._arrivals: list[Sequence] = []
        self._cancelled: list[Sequence] = []
        self._calls: list[Callable[[], None]] = []
        self._deadline: float | None = None  # monotonic seconds; set once the engine drains
        self._thread: threading.Thread | None = None
        self._proven = False
        self.costs = CostModel()

    def prove(self) -> None:
        """Compare the packed with the plain forward on a seeded probe. Raises UnsupportedBase. Before `start`."""
        prove_packing(self.backbone, self._context, self.context_length)
        self._proven = True

    def start(self) -> None:
        """Start the thread; proves the base first if nobody did."""
        if not self._proven:
            self.prove()
        with self._changed:
            if self._thread is not None or self._deadline is not None:
                raise RuntimeError("an engine starts once")
            elsewhere = torch.get_num_threads()
            started: Future[None] = Future()
            self._thread = threading.Thread(target=self._serve, args=(started,), name="cdvft-engine", daemon=True)
            self._thread.start()
        try:
            started.result()
        finally:
            torch.set_num_threads(elsewhere)  # torch hands the number that was set last to threads that begin later

    def submit(self, requests: AbstractSequence[Request]) -> None:
        """Queue all or none; from then on the engine owns their leases. Raises RequestRefused, QueueFull, Draining."""
        for request in requests:
            self._limits.check(request)
        with self._changed:
            if self._deadline is not None:
                raise Draining("the server is shutting down and takes no new requests")
            self._check_ownership(requests)
            if self.waiting + len(requests) > self.config.max_queue:
                raise QueueFull(f"{self.waiting} requests wait, {len(requests)} more exceed {self.config.max_queue}")
            for request in requests:
                if request.lease is not None:
                    request.lease.claimed = True
                self._live[request.id] = Sequence(request)
                self._arrivals.append(self._live[request.id])
            self._changed.notify_all()

    def cancel(self, request_id: str) -> None:
        """End a request with Finished("cancelled") before its next step; does nothing for one that is not there."""
        with self._changed:
            sequence = self._live.get(request_id)
            if sequence is not None:
                self._cancelled.append(sequence)
                self._changed.notify_all()

    def call(self, function: Callable[[], T]) -> "Future[T]":
        """Run this in the engine's thread, between two steps: with its threads, and while no batch runs."""
        called: Future[T] = Future()

        def run() -> None:
            if not called.set_running_or_notify_cancel():
                return
            try:
                called.set_result(function())
            except BaseException as error:
                called.set_exception(error)

        with self._changed:
            if self._thread is None:
                raise RuntimeError("the engine has not been started: it has no thread yet")
            if self._deadline is not None:
                raise Draining("the server is shutting down and takes no new requests")
            self._calls.append(run)
            self._changed.notify_all()
        return called

    def stop(self, drain_seconds: float = 0.0) -> None:
        """Take nothing new, finish what was accepted until the deadline, cancel the rest; returns when that is done."""
        with self._changed:
            deadline = time.monotonic() + drain_seconds
            self._deadline = deadline if self._deadline is None else min(deadline, self._deadline)
            thread = self._thread
            self._changed.notify_all()
        if thread is None:
            self._cancel_rest()
        elif thread is not threading.current_thread():
            thread.join()

    def probe(self, prepared: PreparedAdapter) -> None:
        """One forward pass with this adapter in the caller's thread, outside the pool. Raises InvalidAdapter."""
        probe_adapter(self.backbone, self._context, prepared, self.context_length)

    def stats(self) -> EngineStats:
        with self._changed:
            return EngineStats(
                **asdict(self._core.counters),
                waiting=self.waiting,
                running=max(len(self._live) - self.waiting, 0),
                kv_tokens_used=self._arena.used if self._arena else 0,
                kv_tokens_total=self._arena.size if self._arena else 0,
                **self._runner.graph_stats(),
            )

    @property
    def kernel(self) -> Choice:
        """Which fast path CDVFT takes on this machine, and why."""
        return machine_choice(self.backbone.device, self.config.kernel)

    @property
    def attention(self) -> str:
        """How attention is computed: by attention.c ("native"), or by torch ("views", "groups")."""
        return self._runner.attention

    @property
    def recording(self) -> Recording:
        """Whether decode steps are recorded, and why (not)."""
        stopped = self._runner.stopped
        return self._recording if stopped is None else Recording(False, stopped)

    @property
    def hurried(self) -> Collection[str]:
        """The tenants that use little, of a batch that is kept short for them and runs now."""
        return self._core.hurried

    @property
    def waiting(self) -> int:
        """Requests in no batch yet."""
        return len(self._arrivals) + len(self._scheduler.waiting)

    def _check_ownership(self, requests: AbstractSequence[Request]) -> None:
        """Ids are unique among live requests, and every lease belongs to one request."""
        ids, leases = set(self._live), set()
        for request in requests:
            if request.id in ids:
                raise RequestRefused(request.id, "id", f"a request with id {request.id!r} is in flight already")
            ids.add(request.id)
            lease = request.lease
            if lease is not None:
                if lease.claimed or lease in leases:
                    raise RequestRefused(request.id, "lease", "the lease belongs to another request; each has its own")
                leases.add(lease)
            use = request.merged
            if use is not None and (lease is None or use.lease.weights.digest != lease.digest):
                raise RequestRefused(request.id, "merged", "the merged weights are not those of the request's adapter")

    # on the engine thread

    def _serve(self, started: "Future[None]") -> None:
        torch.get_num_threads()  # at its first use a thread takes the number that was set last, anywhere
        if self.config.threads is not None:
            torch.set_num_threads(self.config.threads)
        try:
            if self.config.fit_costs:
                self.costs = fit_costs(self.backbone, self.config.kernel)
        except BaseException as error:
            with self._changed:
                self._deadline = time.monotonic()
            self._cancel_rest()
            started.set_exception(error)
            return
        started.set_result(None)
        while self._take_orders():
            try:
                if self._scheduler.has_work:
                    self._core.step()
            except Exception as error:  # a fault of the engine's own: everyone in it must hear of it
                for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
                    self._core.fail(sequence, error)
        self._cancel_rest()

    def _take_orders(self) -> bool:
        """Wait until there is something to do; let arrivals in and cancelled requests out. False: stop serving."""
        with self._changed:
            while not (
                self._arrivals
                or self._cancelled
                or self._calls
                or self._scheduler.has_work
                or self._deadline is not None
            ):
                self._changed.wait()
            cancelled, calls = self._cancelled, self._calls
            self._cancelled, self._calls = [], []
            deadline = self._deadline
        self._let_in()
        for sequence in cancelled:
            self._core.finish(sequence, "cancelled")
        for call in calls:
            call()
        return deadline is None or (self._scheduler.has_work and time.monotonic() < deadline)

    def _let_in(self) -> None:
        if not self._arrivals:  # as each adapted layer begins; what comes a moment later is seen in the next
            return
        with self._changed:
            for sequence in self._arrivals:
                self._scheduler.add(sequence)
            self._arrivals = []

    def _cancel_rest(self) -> None:
        with self._changed:
            rest = list(self._live.values())
            self._arrivals = []
        for sequence in rest:
            self._core.finish(sequence, "cancelled")

    def _forget(self, request_id: str) -> None:
        with self._changed:
            del self._live[request_id]


def _limits(backbone: Backbone, context_length: int) -> Limits:
    config = backbone.config
    types = getattr(config, "type_vocab_size", 0)
    return Limits(backbone.info.family.kind, config.vocab_size, types, context_length)

"""One tenant floods an engine, another sends a small request now and then: its latency, and what that costs.

One thread takes the engine's steps and reads its own processor time, on which requests arrive: what else runs on the
machine does not count, and a lap takes as long as it takes.
"""

import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random

from cdvft.backbone import load_backbone
from cdvft.basefolder import family_at
from cdvft.linear import AdapterContext, adapt
from cdvft.prepared import prepare_adapter
from cdvft_server import demo
from cdvft_server.bench.base import make_base
from cdvft_server.bench.fleet import Fleet
from cdvft_server.bench.loads import greedy
from cdvft_server.bench.shapes import Shape
from cdvft_server.bench.timing import milliseconds
from cdvft_server.engine import AdapterPool, Event, Failed, Request, Token
from cdvft_server.engine.attention import ATTENTION
from cdvft_server.engine.batch import Sequence
from cdvft_server.engine.core import Core
from cdvft_server.engine.runners import Runner, kv_arena
from cdvft_server.engine.scheduler import Scheduler
from cdvft_server.process import settled_heap

__all__ = ["Case", "Sides", "bases", "compare"]

WIDTHS = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 12}
ENCODER = Shape("roberta", "float32", {**WIDTHS, "vocab_size": 8192, "max_position_embeddings": 514})
PAUSE = 30  # idle latencies between two probes: 33 ms, as cdvft-tiny takes, are one a second
STREAMS = 32  # sequences of the flood that a decoder runs at once
QUEUED = 256  # requests of the flood, running or waiting
PROBES = 8  # of a lap
WARM_UP = 20  # idle latencies before a lap counts
BATCH = 2048  # tokens


@dataclass(frozen=True)
class Case:
    """`flood`, `flood_answer`: (fewest, most) tokens of its prompts and answers; `probe`, `probe_answer`: tokens of its
    one. Answers have 0 for an encoder. Those of the flood differ: of one length, they would begin and end together."""

    name: str
    base: str
    probe: int
    probe_answer: int
    flood: tuple[int, int]
    flood_answer: tuple[int, int]

    @property
    def kv_tokens(self) -> int:
        return STREAMS * (sum(self.flood) + sum(self.flood_answer)) // 2 * 64 // 63


@contextmanager
def bases(base: str | None = None) -> Iterator[list[Case]]:
    """A paragraph and a sentence as probes of an encoder, a short answer of a decoder: of this base folder, else of an
    encoder of random weights and the embedded decoder."""
    with tempfile.TemporaryDirectory(prefix="cdvft-bench-") as folder:
        kind = None if base is None else family_at(Path(base)).kind
        cases = []
        if kind != "decoder":
            encoder = base or str(make_base(ENCODER, Path(folder) / "encoder", ["a text"]))
            cases.append(Case("encoder, a paragraph", encoder, 256, 0, (16, 48), (0, 0)))
            cases.append(Case("encoder, a sentence", encoder, 24, 0, (16, 48), (0, 0)))
        if kind != "encoder":
            cases.append(Case("decoder, 16 tokens", base or str(demo.base_path()), 32, 16, (16, 48), (32, 96)))
        yield cases


class Sides:
    """One base and its adapter; a core for each way of scheduling takes its turns on it."""

    def __init__(self, case: Case) -> None:
        self.case, self.backbone = case, load_backbone(case.base)
        self.pool = AdapterPool("cpu", 1 << 26)
        self.context = AdapterContext()
        adapt(self.backbone.model, self.backbone.info.sites, self.context)
        self.backbone.model.config._attn_implementation = ATTENTION
        task = "classify" if self.backbone.info.family.kind == "encoder" else "generate"
        prepared = prepare_adapter(Fleet(self.backbone.info, "cdvft", task).adapter(0))
        self.pool.place(prepared).release()
        self.digest = prepared.digest

    def lap(self, fair: bool, probes: int, pause: float | None) -> "Lap":
        """Probes beside a flood, `pause` seconds apart, or without (None) one after another."""
        lap = Lap(self, probes, pause)
        arena = kv_arena(self.backbone, self.case.kv_tokens)
        runner, scheduler = Runner(self.backbone, self.context, arena), Scheduler(arena, BATCH, fair=fair)
        lap.run(Core(self.backbone, self.pool, runner, scheduler, forget=lambda _: None, let_in=lap.let_in))
        return lap


@dataclass
class Lap:
    """`latencies` of the probes in seconds; `throughput`: tokens through the model in a second."""

    sides: Sides
    probes: int
    pause: float | None
    latencies: list[float] = field(default_factory=list)
    throughput: float = 0.0
    _arrivals: deque[float] = field(default_factory=deque)

    def run(self, core: Core) -> None:
        self._core, self._numbers, self._random = core, count(), Random(0)
        if self.pause is None:
            for number in range(self.probes):
                self._arrivals.append(time.thread_time())
                self._step_until(lambda number=number: len(self.latencies) > number)
            return
        for _ in range(QUEUED):
            self._flood()
        start = time.thread_time() + WARM_UP * self.pause / PAUSE
        self._step_until(lambda: time.thread_time() >= start)
        tokens, start = core.counters.tokens, time.thread_time()
        self._arrivals.extend(start + (number + self._random.random()) * self.pause for number in range(self.probes))
        self._step_until(lambda: time.thread_time() >= start + self.probes * self.pause)
        self.throughput = (core.counters.tokens - tokens) / (time.thread_time() - start)
        for sequence in [*core.scheduler.running, *core.scheduler.waiting]:
            sequence.request.release()

    def let_in(self) -> None:
        """The next probe, once it is time."""
        if self._arrivals and time.thread_time() >= self._arrivals[0]:
            arrival, case = self._arrivals.popleft(), self.sides.case
            ended = lambda: self.latencies.append(time.thread_time() - arrival)  # noqa: E731
            self._send("probe", case.probe, case.probe_answer, ended)

    def _step_until(self, over: Callable[[], bool]) -> None:
        while not over():
            self.let_in()
            self._core.step()

    def _flood(self) -> None:
        case = self.sides.case
        self._send("flood", self._random.randint(*case.flood), self._random.randint(*case.flood_answer), self._flood)

    def _send(self, tenant: str, prompt: int, answer: int, ended: Callable[[], None]) -> None:
        def deliver(event: Event) -> None:
            if isinstance(event, Failed):
                raise event.error
            if not isinstance(event, Token):
                ended()

        ids = [self._random.randrange(4, 500) for _ in range(prompt)]
        lease = self.sides.pool.acquire(self.sides.digest)
        name, sampling = f"{tenant}{next(self._numbers)}", greedy(answer) if answer else None
        self._core.scheduler.add(Sequence(Request(name, ids, deliver, None, lease, sampling, tenant=tenant)))


def compare(case: Case, runs: int) -> dict[str, float]:
    """Laps in turn, idle probes before each pair."""
    sides = Sides(case)
    sides.lap(True, PROBES, None)
    idle: list[float] = []
    fifo: list[Lap] = []
    fair: list[Lap] = []
    with settled_heap():  # as in a server
        for number in range(runs):
            idle += sides.lap(True, PROBES, None).latencies
            pause = PAUSE * statistics.median(idle)
            for own in (fair, fifo) if number % 2 else (fifo, fair):
                own.append(sides.lap(own is fair, PROBES, pause))
    alone = milliseconds(idle)
    shown = {"idle_p50_ms": alone["p50_ms"], "idle_p95_ms": alone["p95_ms"]}
    for name, laps in (("fair", fair), ("fifo", fifo)):
        own = milliseconds([latency for lap in laps for latency in lap.latencies])
        shown[f"{name}_p50_ratio"] = round(own["p50_ms"] / alone["p50_ms"], 2)
        shown[f"{name}_p95_ratio"] = round(own["p95_ms"] / alone["p95_ms"], 2)
    pairs = zip(fair, fifo, strict=True)
    return shown | {"throughput_ratio": round(statistics.median(a.throughput / b.throughput for a, b in pairs), 3)}

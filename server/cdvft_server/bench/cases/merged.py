"""Adapters beside the base's weights (fft), in weights of their own (merged), or whichever the engine takes (auto)."""

import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from random import Random

from cdvft_server.bench.bench import Bench, Row
from cdvft_server.bench.loads import Load, greedy
from cdvft_server.bench.served import Served, serving
from cdvft_server.bench.timing import Lap, Side, in_turn
from cdvft_server.engine import Lease, MergedPool, MergedUse, merge_adapter

__all__ = ["merged"]

MODES = ("fft", "merged", "auto")
LENGTHS = (1, 16, 64, 256, 512)  # tokens of one segment
BATCH_TOKENS = 2048


def merged(bench: Bench) -> Iterator[Row]:
    """Batches of equal segments of random tokens: as many as fit BATCH_TOKENS, at most `--requests`. Each segment names
    an adapter of its own, or `--distinct` adapters share them. Generating stops after one token: it is the prompt that
    is timed.
    """
    settings, backbone = bench.settings, bench.load()
    most = backbone.info.max_length - (settings.task == "generate")
    lengths = [length for length in LENGTHS if length <= most]
    loads = {length: _load(bench, length, backbone.config.vocab_size) for length in lengths}
    count = min(settings.distinct or settings.requests, settings.adapters)
    with serving(backbone, bench.fleet(backbone), count, list(loads.values()), bench.threads, fit_costs=True) as served:
        modes = Modes(served)
        for load in loads.values():
            yield from _rows(bench, modes, load)


class Modes:
    """Every resident adapter merged, too; what `auto` takes, it decides as the service does."""

    def __init__(self, served: Served) -> None:
        self.served, self._pool = served, MergedPool(sys.maxsize)
        for number in range(len(served.digests)):
            self._pool.place(merge_adapter(served.backbone, served.fleet.adapter(number))).release()

    def run(self, mode: str, load: Load, adapters: list[int]) -> Lap:
        """One batch in this mode; its tokens are the segments', generating or not."""
        leases = self.served.leases(load, adapters)
        tokens = Counter[str]()
        for ids, lease in zip(load.prompts, leases, strict=True):
            tokens[lease.digest if lease else ""] += len(ids)
        merged = [self._use(mode, lease, tokens) if lease and adapters else None for lease in leases]
        return Lap(sum(map(len, load.prompts)), load.run(self.served.engine, leases, merged=merged).seconds)

    def _use(self, mode: str, lease: Lease, tokens: Counter[str]) -> MergedUse | None:
        merged = None if mode == "fft" else self._pool.acquire(lease.digest)
        if merged is None:
            return None
        if mode == "merged":
            return MergedUse(merged, prompt=True, decode_from=1)
        sites = [self.served.backbone.info.sites[name] for name in lease.sites]
        least = self.served.engine.costs.least_tokens(lease.method, lease.flops, sites)
        return MergedUse(merged, prompt=tokens[lease.digest] >= least, decode_from=least)


def _rows(bench: Bench, modes: Modes, load: Load) -> Iterator[Row]:
    length, requests = len(load.prompts[0]), len(load.prompts)
    adapters = [k % len(modes.served.digests) for k in range(requests)]

    def base(_: int) -> Lap:
        return modes.run("fft", load, [])

    def side(mode: str, _: int) -> Lap:
        return modes.run(mode, load, adapters)

    sides: dict[str, Side] = {"base": base, **{mode: partial(side, mode) for mode in MODES}}
    timed = in_turn(sides, bench.settings.runs)
    for name, own in timed.items():
        count = 0 if name == "base" else len(set(adapters))
        yield bench.row(
            "merged",
            f"segments of {length} tokens, {name}",
            adapters=count,
            distinct=count,
            popularity="distinct",
            tokens_per_s=own.tokens_per_s,
            ratio_to_base=own.ratio_to(timed["base"]),
            mode=name,
            segment_tokens=length,
            **own.latencies,
        )


def _load(bench: Bench, length: int, vocabulary: int) -> Load:
    random = Random(length)
    count = max(1, min(bench.settings.requests, BATCH_TOKENS // length))
    prompts = [[random.randrange(4, vocabulary) for _ in range(length)] for _ in range(count)]
    return Load(prompts, None if bench.settings.task == "classify" else greedy(1))

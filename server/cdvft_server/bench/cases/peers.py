"""The same requests by what people use today; `ratio` is our throughput over theirs."""

import time
from collections.abc import Callable, Iterator, Sequence

import torch

from cdvft_server.bench.bench import Bench, Row
from cdvft_server.bench.continuous import Unavailable, generate_continuously
from cdvft_server.bench.loads import Load
from cdvft_server.bench.mixed_lora import lora_names, wrap
from cdvft_server.bench.padded import Plain, padded_over_real
from cdvft_server.bench.popularity import Draws
from cdvft_server.bench.served import Served, serving
from cdvft_server.bench.settings import Popularity
from cdvft_server.bench.timing import Lap, in_turn

__all__ = ["peers"]

Theirs = Callable[[Load, Sequence[int]], None]  # a load, and each request's adapter (none: the base)


def peers(bench: Bench) -> Iterator[Row]:
    """`--distinct` adapters (as many as requests) against transformers' base, then PEFT's adapters on the same base.

    The peers compute no head and have no queue; they name the same number of adapters in the same batches.
    """
    settings, backbone = bench.settings, bench.load()
    loads = bench.loads(backbone)
    count = min(settings.distinct or settings.requests, settings.adapters)
    with serving(backbone, bench.fleet(backbone), count, loads, bench.threads) as served:
        plain = Plain(bench.load(), settings.task == "generate")
        match = Match(bench, served, loads, count)
        yield match.row("transformers padded", 0, lambda load, _: plain.run(load))
        yield from _continuous(match, plain)
        wrap(plain, count, settings.task == "generate")
        names = lora_names(count)
        yield match.row(
            "peft mixed lora", count, lambda load, own: plain.run(load, adapter_names=[names[k] for k in own])
        )
        yield match.row(
            "peft set_adapter",
            count,
            lambda load, own: plain.run_each(load, [names[k] for k in own], plain.wrapped.set_adapter),
        )


class Match:
    """Ours against one peer after another, on the same batches."""

    def __init__(self, bench: Bench, served: Served, loads: Sequence[Load], count: int) -> None:
        self.bench, self.served, self.loads, self.count = bench, served, loads, count
        self.waste = padded_over_real(loads)

    def row(self, peer: str, adapters: int, theirs: Theirs) -> Row:
        """With `adapters` in use, 0: the base on both sides. Raises what the peer raises."""
        settings = self.bench.settings
        popularity: Popularity = settings.popularity or "distinct"
        batches = self._draws(popularity, adapters)

        def ours(number: int) -> Lap:
            return self.served.run(self._load(number), batches[number])

        def its(number: int) -> Lap:
            """In the engine's thread, which has the threads and the memory that ours have."""
            load, start = self._load(number), time.perf_counter()
            self.served.engine.call(lambda: theirs(load, batches[number])).result()
            if self.served.backbone.device.type == "cuda":
                torch.cuda.synchronize()
            return Lap(load.tokens, time.perf_counter() - start)

        timed = in_turn({"ours": ours, "its": its}, settings.runs)
        return self.bench.row(
            "peers",
            f"ours over {peer}",
            adapters=adapters,
            distinct=max(len(set(batch)) for batch in batches),
            popularity=popularity if adapters else None,
            tokens_per_s=timed["ours"].tokens_per_s,
            peer=peer,
            ratio=timed["ours"].ratio_to(timed["its"]),
            peer_tokens_per_s=timed["its"].tokens_per_s,
            padded_over_real=self.waste,
        )

    def _draws(self, popularity: Popularity, adapters: int) -> list[list[int]]:
        """What the requests of each batch name; with `adapters` 0 nothing."""
        settings = self.bench.settings
        if not adapters:
            return [[]] * settings.runs
        draws = Draws(popularity, adapters, settings.requests, settings.distinct)
        return [draws.batch() for _ in range(settings.runs)]

    def _load(self, number: int) -> Load:
        return self.loads[number % len(self.loads)]


def _continuous(match: Match, plain: Plain) -> Iterator[Row]:
    """Nothing, and a note, where it cannot be had."""
    peer = "transformers continuous batching"
    try:
        if match.bench.settings.task == "generate":
            yield match.row(peer, 0, lambda load, _: generate_continuously(plain, load))
    except Unavailable as error:
        match.bench.note(f"peers: {peer} left out: {error}")

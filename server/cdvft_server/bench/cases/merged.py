"""Adapters beside the base's weights (fft), in weights of their own (merged), or whichever the engine takes (auto)."""

from collections.abc import Iterator
from functools import partial
from random import Random

from cdvft_server.bench.bench import Bench, Row
from cdvft_server.bench.loads import Load, greedy
from cdvft_server.bench.served import Served, serving
from cdvft_server.bench.timing import Lap, Side, in_turn

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
    with serving(backbone, bench.fleet(backbone), count, list(loads.values())) as served:
        modes = supported_modes(served)
        for mode in MODES:
            if mode not in modes:
                bench.note(f"merged: this engine does not run adapters in mode {mode}: left out")
        for length, load in loads.items():
            yield from _rows(bench, served, load, length, [mode for mode in MODES if mode in modes])


def supported_modes(served: Served) -> tuple[str, ...]:
    """What this engine can run an adapter in."""
    return tuple(getattr(served.engine, "modes", ("fft",)))


def run_in(served: Served, mode: str, load: Load, adapters: list[int]) -> Lap:
    """One batch in this mode; its tokens are the segments', generating or not."""
    leases = served.leases(load, adapters)
    for lease in leases:
        if lease is not None and lease.mode != mode:
            lease.mode = mode
    return Lap(sum(map(len, load.prompts)), load.run(served.engine, leases).seconds)


def _rows(bench: Bench, served: Served, load: Load, length: int, modes: list[str]) -> Iterator[Row]:
    requests = len(load.prompts)
    adapters = [k % len(served.digests) for k in range(requests)]

    def base(_: int) -> Lap:
        return run_in(served, "fft", load, [])

    def side(mode: str, _: int) -> Lap:
        return run_in(served, mode, load, adapters)

    sides: dict[str, Side] = {"base": base, **{mode: partial(side, mode) for mode in modes}}
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

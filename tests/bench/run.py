"""What `cdvft bench` does not measure, on real data and models: `python -m tests.bench.run [CASE ...] [--runs N]`.

The two sides take turns and medians are reported, as there; nothing here gates. Engine level, without HTTP, but for
`flood`.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from cdvft.backbone import load_backbone
from cdvft.methods import METHODS
from cdvft.train.precision import has_fast_bfloat16
from cdvft_server.bench.fleet import Fleet
from cdvft_server.bench.loads import make_loads
from cdvft_server.bench.served import serving
from cdvft_server.bench.settings import Settings
from cdvft_server.bench.timing import Lap, Side, in_turn
from transformers.utils.logging import disable_progress_bar

from tests.bench import flood as flooding
from tests.bench.fairness import bases, compare
from tests.bench.training import TrainingSteps
from tests.e2e import inputs

DISTINCT = 32


def methods(runs: int) -> Iterator[dict[str, Any]]:
    """For each method, 32 distinct adapters with their heads in a batch of 32 against the base with one head."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # but in the engine's thread, as a server does
    texts = [row["text"] for row in inputs.rows(inputs.data("sst_2", "valid"))[:DISTINCT]]
    for method in METHODS:
        backbone = load_backbone(str(inputs.model("minilm-roberta")))
        [load] = make_loads(backbone, texts, Settings("classify", requests=DISTINCT))
        fleet = Fleet(backbone.info, method.name, "classify")
        with serving(backbone, fleet, DISTINCT, [load], threads) as served:
            sizes = {"row_bytes": served.row_bytes, "shared_bytes": served.shared_bytes}
            times = _times(lambda _: served.run(load), lambda _: served.run(load, range(DISTINCT)), runs)  # noqa: B023
        yield {"case": "methods", "method": method.name, **sizes, **times}
    torch.set_num_threads(threads)


def training(runs: int) -> Iterator[dict[str, Any]]:
    """Steps of 32 sst_2 rows with a CDVFT adapter: ours (inputs of like length together, mixed precision where the
    processor has it) against batches padded in the order they were drawn, float32; the same 1,280 rows.
    """
    steps = TrainingSteps(inputs.model("minilm-roberta"), inputs.rows(inputs.data("sst_2", "train"))[:1280])
    for what, mixed in (("float32", False), ("mixed precision", True)):
        if mixed and not has_fast_bfloat16(torch.device("cpu")):
            continue
        times = _times(_lap(lambda mixed=mixed: steps.run(steps.alike, mixed)), _lap(steps.padded), runs)  # type: ignore[misc]
        yield {"case": "training", "what": f"padded loop over ours, {what}", **times}


def fairness(runs: int, base: str | None) -> Iterator[dict[str, Any]]:
    """A flooding tenant and one that sends a request now and then: latencies over those of an idle engine (`fair`,
    `fifo`), and throughput fair over fifo.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the thread whose time is taken
    with bases(base) as cases:
        for case in cases:
            yield {"case": "fairness", "what": case.name, **compare(case, runs)}
    torch.set_num_threads(threads)


def flood(runs: int, base: str | None) -> Iterator[dict[str, Any]]:
    """The same as `fairness` over HTTP, with `runs` requests of the second tenant, one a second, on each side."""
    with bases(base) as cases:
        for case in cases:
            yield {"case": "flood", "what": case.name, **flooding.compare(case, runs, torch.get_num_threads())}


def _lap(work: Callable[[], None]) -> Side:
    def lap(_: int) -> Lap:
        start = time.perf_counter()
        work()
        return Lap(1, time.perf_counter() - start)

    return lap


def _times(first: Side, second: Side, runs: int) -> dict[str, float]:
    """Medians of both, and of the pairwise ratios of seconds, second / first."""
    timed = in_turn({"first": first, "second": second}, runs)
    medians = {name: statistics.median(lap.seconds for lap in own.laps) for name, own in timed.items()}
    shown = {f"{name}_ms": round(seconds * 1e3, 1) for name, seconds in medians.items()}
    return {**shown, "ratio": round(timed["first"].ratio_to(timed["second"]), 3)}


OWN = {"methods": methods, "training": training}  # have a base of their own
FLOODED = {"fairness": fairness, "flood": flood}
CASES = (*OWN, *FLOODED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], default=[])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--base", metavar="DIR", help="of fairness and flood, instead of their own")
    options = parser.parse_args()
    names = options.cases or CASES
    if options.base is not None and any(name in OWN for name in names):
        parser.error(f"--base is for {' and '.join(FLOODED)}, {' and '.join(OWN)} have their own; name the cases")
    torch.set_num_threads(options.threads)
    disable_progress_bar()
    for name in names:
        for row in OWN[name](options.runs) if name in OWN else FLOODED[name](options.runs, options.base):
            print(json.dumps({**row, "dtype": "float32", "runs": options.runs}), flush=True)


if __name__ == "__main__":
    main()

"""First figures, each a ratio within one run: `make bench`, or `python -m tests.bench.run [CASE ...] [--runs N]`.

Every case interleaves its two sides and reports medians; nothing here gates. Engine level, without HTTP.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from cdvft.adapter import Adapter
from cdvft.backbone import Backbone, load_backbone
from cdvft.methods import method_named
from cdvft.prepared import prepare_adapter
from cdvft.train.precision import has_fast_bfloat16
from cdvft_server.engine import AdapterPool, Engine, EngineConfig, SamplingParams

from tests.bench.load import Load, classify_load, generate_load
from tests.bench.shapes import llama_160m, text_encoder
from tests.bench.training import TrainingSteps
from tests.e2e import inputs
from tests.tiny import method_adapter, random_adapter

Side = Callable[[], None]
# each method's hyper-parameters as `cdvft train` takes them for a width of 384
OPTIONS: dict[str, dict[str, Any]] = {
    "cdvft": {},
    "lora": {"r": 8, "lora_alpha": 16.0},
    "fourierft": {"n_frequency": 1000, "scaling": 100.0},
    "sdctft": {"n_frequency": 1000},
    "vera": {"r": 256},
    "lamda": {"r": 32},
    "c3a": {"block_size": 384},
    "waveft": {"n_frequency": 1000, "scaling": 25.0},
}


def interleaved(first: Side, second: Side, runs: int) -> tuple[float, float, float]:
    """Median seconds of both, and the median of the pairwise ratios second / first; one warm-up of each."""
    first(), second()
    pairs = [(_seconds(first), _seconds(second)) for _ in range(runs)]
    ratios = statistics.median(b / a for a, b in pairs)
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), ratios


def _seconds(side: Side) -> float:
    start = time.perf_counter()
    side()
    return time.perf_counter() - start


class Served:
    """An engine on a base with `adapters` random ones resident, for loads whose requests name them in turn."""

    def __init__(self, path: Path, adapters: int, task: Any, method: str = "cdvft") -> None:
        self.backbone = load_backbone(str(path))
        self.pool = AdapterPool(self.backbone.device, 1 << 32)
        self.engine = Engine(self.backbone, self.pool, EngineConfig(kv_tokens=16_384))
        self.digests: list[str] = []
        if task != "lm":
            self.head_only = self._place_head_alone()
        for seed in range(adapters):
            prepared = prepare_adapter(_random(self.backbone, method, seed, task))
            self.pool.place(prepared).release()
            self.digests.append(prepared.digest)
            self.row_bytes, self.shared_bytes = prepared.nbytes, prepared.shared_nbytes
        self.engine.start()

    def _place_head_alone(self) -> str:
        """A head without vectors: the base's own cost of a classification."""
        prepared = prepare_adapter(random_adapter(self.backbone.info, 999, "classification"))
        tables = {"no site": {"unused": torch.zeros(1)}}
        bare = replace(
            prepared, digest="head alone", tables=tables, layouts={"no site": None}, signature="head alone", nbytes=4
        )
        self.pool.place(bare).release()
        return bare.digest

    def run(self, load: Load, distinct: int) -> None:
        """All requests at once, over `distinct` adapters (0: the base); returns when the last has ended."""
        alone = [] if load.sampling else [self.head_only]
        load.run(self.engine, self.pool, self.digests[:distinct] or alone)


def _random(backbone: Backbone, method: str, seed: int, task: Any) -> Adapter:
    """With the hyper-parameters that `cdvft train` takes."""
    if method == "cdvft":
        return random_adapter(backbone.info, seed, task, scale=0.02)
    labels = None if task == "lm" else ["no", "yes"]
    chosen = OPTIONS[method]
    return method_adapter(backbone.info, method_named(method), 0, seed, labels=labels, scale=0.02, options=chosen)


def encoder(runs: int) -> Iterator[dict[str, Any]]:
    """Packed engine (and a head) against transformers' padded batch (without), 32 inputs, no adapters."""
    served = Served(text_encoder(), 0, "classification")
    plain = load_backbone(str(text_encoder()))
    for what, split, count in (("sst_2 train phrases", "train", 32), ("sst_2 validation sentences", "valid", 32)):
        texts = [row["text"] for row in inputs.rows(inputs.data("sst_2", split))[:count]]
        load = classify_load(served.backbone, texts)
        batch = plain.tokenizer(texts, padding=True, return_tensors="pt")
        real, padded = int(batch["attention_mask"].sum()), batch["input_ids"].numel()

        def padded_forward(batch: Any = batch) -> None:
            with torch.inference_mode():
                plain.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])

        packed, whole, ratio = interleaved(lambda load=load: served.run(load, 0), padded_forward, runs)  # type: ignore[misc]
        yield {
            "case": "packed",
            "task": what,
            "packed_ms": round(packed * 1e3, 1),
            "padded_ms": round(whole * 1e3, 1),
            "ratio": round(ratio, 2),
            "padded_over_real": round(padded / real, 2),
        }
    served.engine.stop(1.0)


def overhead(runs: int) -> Iterator[dict[str, Any]]:
    """32 distinct adapters with their heads in a batch of 32 against the base with one head."""
    served = Served(text_encoder(), 32, "classification")
    texts = [row["text"] for row in inputs.rows(inputs.data("sst_2", "valid"))[:32]]
    load = classify_load(served.backbone, texts)
    base, mixed, ratio = interleaved(lambda: served.run(load, 0), lambda: served.run(load, 32), runs)
    yield {
        "case": "overhead",
        "task": "classify",
        "what": "32 distinct adapters over base",
        **_times(base, mixed, ratio),
    }
    served.engine.stop(1.0)


def methods(runs: int) -> Iterator[dict[str, Any]]:
    """For each method, 32 distinct adapters with their heads in a batch of 32 against the base with one head."""
    texts = [row["text"] for row in inputs.rows(inputs.data("sst_2", "valid"))[:32]]
    for name in OPTIONS:
        served = Served(text_encoder(), 32, "classification", name)
        load = classify_load(served.backbone, texts)
        base, mixed, ratio = interleaved(lambda: served.run(load, 0), lambda: served.run(load, 32), runs)  # noqa: B023
        sizes = {"row_bytes": served.row_bytes, "shared_bytes": served.shared_bytes}
        yield {"case": "methods", "method": name, **sizes, **_times(base, mixed, ratio)}
        served.engine.stop(1.0)


def decode(runs: int) -> Iterator[dict[str, Any]]:
    """llama-160m shape, 32 ragged prompts of 16 to 256 tokens, 32 new ones: against padded `generate`, and base against
    32 adapters."""
    with tempfile.TemporaryDirectory() as folder:
        path = llama_160m(Path(folder))
        served = Served(path, 32, "lm")
        load = generate_load(served.backbone, 32, 32)
        plain = load_backbone(str(path))
        generate = padded_generate(plain, load)
        base, padded, ratio = interleaved(lambda: served.run(load, 0), generate, runs)
        yield {"case": "decode", "what": "padded generate over engine", **_times(base, padded, ratio)}
        base, mixed, ratio = interleaved(lambda: served.run(load, 0), lambda: served.run(load, 32), runs)
        yield {"case": "decode", "what": "32 distinct adapters over base", **_times(base, mixed, ratio)}
        served.engine.stop(1.0)


def training(runs: int) -> Iterator[dict[str, Any]]:
    """Steps of 32 sst_2 rows with a CDVFT adapter: ours (inputs of like length together, mixed precision where the
    processor has it) against batches padded in the order they were drawn, float32; the same 1,280 rows.
    """
    steps = TrainingSteps(text_encoder(), inputs.rows(inputs.data("sst_2", "train"))[:1280])
    for what, mixed in (("float32", False), ("mixed precision", True)):
        if mixed and not has_fast_bfloat16(torch.device("cpu")):
            continue
        ours, padded, ratio = interleaved(lambda mixed=mixed: steps.run(steps.alike, mixed), steps.padded, runs)  # type: ignore[misc]
        yield {"case": "training", "what": f"padded loop over ours, {what}", **_times(ours, padded, ratio)}


def padded_generate(plain: Backbone, load: Load) -> Side:
    """transformers' `generate` on the same prompts, padded on the left, the same number of new tokens."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(plain.path, dtype=torch.float32).eval()
    longest = max(map(len, load.prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in load.prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in load.prompts])
    params = load.sampling or SamplingParams(1, 0.0, 1.0, 0, 0)

    def run() -> None:
        tokens = params.max_tokens
        model.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=0
        )

    return run


def _times(first: float, second: float, ratio: float) -> dict[str, float]:
    return {"first_ms": round(first * 1e3, 1), "second_ms": round(second * 1e3, 1), "ratio": round(ratio, 3)}


CASES = {"encoder": encoder, "overhead": overhead, "methods": methods, "decode": decode, "training": training}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], default=[])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.cases or CASES:
        for row in CASES[name](options.runs):
            print(json.dumps({**row, "dtype": "float32", "runs": options.runs}), flush=True)


if __name__ == "__main__":
    main()

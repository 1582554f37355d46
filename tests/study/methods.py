"""Every method side by side: `python -m tests.study.methods [--jobs N]`, resumable; it writes docs/methods.md's tables.

minilm-roberta, five tasks, three seeds: accuracy, paired with LoRA by example; numbers, bytes, FLOPs, seconds; what 32
distinct adapters cost to serve. What `tests.study.evidence` recorded is not run again.
"""

import statistics
from typing import Any

from cdvft.accounting import adapter_cost
from cdvft.backbone import load_backbone
from cdvft.checkpoint import adapter_files
from cdvft_server.bench.fleet import Fleet

from tests.bench.run import methods as serving_costs
from tests.e2e import inputs
from tests.paper import COLUMNS
from tests.study import evidence
from tests.study.runner import Training, command, record, records

TASKS = ("clinc_banking", "trec", "sst_2", "banking77", "snips")
OTHERS: dict[str, dict[str, Any]] = {
    "sDCTFT n=1000": {"method": "sdctft"},
    "VeRA r=256": {"method": "vera"},
    "LaMDA r=32": {"method": "lamda"},
    "C3A b=384": {"method": "c3a"},
    "WaveFT n=1000": {"method": "waveft"},
}
NAMES = {"CDVFT": "cdvft", "LoRA r=8": "lora", "FourierFT n=1000": "fourierft"}
NAMES |= {name: options["method"] for name, options in OTHERS.items()}
RUNS = 10  # of each pair of serving costs


def trainings() -> list[Training]:
    shared = {name: options for name, options in evidence.METHODS.items() if name in NAMES}
    return evidence.trainings(shared, TASKS) + evidence.trainings(OTHERS, TASKS)


def serve() -> None:
    """The serving costs, where they are not recorded yet."""
    if not records("serving"):
        for row in serving_costs(RUNS):
            record("serving", row)


def tables() -> str:
    """Three sections, each with the heading of its table."""
    sections = {"Accuracy": accuracies(), "Costs": costs(), "The paper's columns": paper()}
    return "\n\n".join(f"### {name}\n\n{table}" for name, table in sections.items())


def accuracies() -> str:
    found = {(r["method"], r["task"], r["seed"]): r for r in records("evidence")}
    lines = [f"| method | {' | '.join(TASKS)} |", "| --- " * (len(TASKS) + 1) + "|"]
    for method in NAMES:
        cells = [_accuracy(found, method, task) for task in TASKS]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _accuracy(found: dict[tuple[str, str, int], dict[str, Any]], method: str, task: str) -> str:
    """Mean of the seeds, and the difference to LoRA with its interval; says where seeds are missing."""
    other = "LoRA r=8"
    seeds = [s for s in evidence.SEEDS if (method, task, s) in found and (other, task, s) in found]
    if not seeds:
        return "not yet trained"
    missing = "" if len(seeds) == len(evidence.SEEDS) else f" ({len(seeds)} of {len(evidence.SEEDS)} seeds)"
    mean = statistics.fmean(found[method, task, seed]["metrics"]["accuracy"] for seed in seeds)
    if method == other:
        return f"{mean:.3f}{missing}"
    ours, theirs = ([found[name, task, seed]["predictions"] for seed in seeds] for name in (method, other))
    middle, low, high = evidence.interval(task, ours, theirs, evidence.truth(task))
    return f"{mean:.3f}; {middle:+.3f} [{low:+.3f}, {high:+.3f}]{missing}"


def costs() -> str:
    found = {(r["method"], r["task"], r["seed"]): r for r in records("evidence")}
    serving = {row["method"]: row for row in records("serving")}
    base = load_backbone(str(inputs.model("minilm-roberta"))).info
    columns = ["numbers", "files, bytes", "device, bytes", "shared, bytes", "FLOPs per token", "trec, s", "serving"]
    lines = [f"| method | {' | '.join(columns)} |", "| --- " * (len(columns) + 1) + "|"]
    for method, name in NAMES.items():
        adapter = Fleet(base, name, "generate").adapter(1)
        cost = adapter_cost(adapter, adapter_files(adapter, base))
        seconds = [r["seconds"] for (m, task, _), r in found.items() if (m, task) == (method, "trec")]
        cells = [f"{cost.parameters:,}", f"{cost.disk_bytes:,}", f"{cost.device_bytes:,}"]
        cells += [f"{cost.shared_device_bytes:,}", f"{cost.flops:,.0f}"]
        cells.append(f"{min(seconds):.0f}" if seconds else "")
        cells.append(f"{serving[name]['ratio']:.3f}" if name in serving else "")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def paper() -> str:
    """The columns of arXiv 2505.00580, by its own way of counting."""
    lines = ["| what | formula here | the paper |", "| --- | --- | --- |"]
    lines += [f"| {what} | {value:,.0f} | {printed} |" for what, value, printed in COLUMNS]
    return "\n".join(lines)


if __name__ == "__main__":
    command("evidence", __doc__, trainings, tables, further=serve, page=inputs.ROOT / "docs" / "methods.md")

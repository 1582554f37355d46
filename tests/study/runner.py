"""Trainings of a study: many, in worker processes, each recorded as it ends, none run twice."""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cdvft.files import FIELDS
from cdvft.train import TrainConfig

from tests.e2e.inputs import ROOT

__all__ = ["RUNS", "Training", "by", "command", "record", "records", "with_tables"]

RUNS = ROOT / "runs" / "study"  # data, kept out of the repository
RECORDED = ROOT / "tests" / "study" / "recorded"  # one line for each training
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


@dataclass(frozen=True)
class Training:
    """One training of a study. `key` names it; `patch` is the name of a function of `tests.study.variants` to call
    first; the figures are of `test`, where given, else of the kept epoch's evaluation.
    """

    key: tuple[str, ...]
    config: TrainConfig
    test: Path | None = None
    patch: str | None = None
    keep_predictions: bool = False
    about: dict[str, Any] = field(default_factory=dict)


def command(
    study: str,
    about: str | None,
    trainings: Callable[[], Sequence[Training]],
    table: Callable[[], str],
    *,
    further: Callable[[], None] = lambda: None,
    page: Path | None = None,
) -> None:
    """What `python -m tests.study.<name>` does: run what is not recorded yet in `study`, then `further`, and print the
    tables; where there is a `page`, they are written into it, too, between its two marks."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="tell what is recorded and run nothing")
    options = parser.parse_args()
    if not options.table:
        run_all(study, trainings(), options.jobs)
        further()
    tables = table()
    print(tables)
    if page is not None:
        page.write_text(with_tables(page.read_text(), tables))


def with_tables(text: str, tables: str) -> str:
    """The page with these tables between its marks. Raises ValueError where it does not have each mark once."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"the page needs {BEGIN} and {END}, each once")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{tables}\n{END}{after}"


def run_all(study: str, trainings: Sequence[Training], jobs: int) -> None:
    """Run those that are not recorded yet, in the order given, `jobs` at a time, one thread each."""
    done = {tuple(record["key"]) for record in records(study)}
    left = [training for training in trainings if training.key not in done]
    print(f"{study}: {len(trainings)} trainings, {len(trainings) - len(left)} recorded, {len(left)} to run", flush=True)
    RECORDED.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    started = time.monotonic()
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_one_thread, max_tasks_per_child=1) as pool:
        running = {pool.submit(_run, training): training for training in left}
        for count, future in enumerate(as_completed(running), 1):
            training = running[future]
            minutes = (time.monotonic() - started) / 60
            told = f"{count}/{len(left)} {minutes:.1f} min {'/'.join(training.key)}"
            if (error := future.exception()) is not None:
                print(f"{told} failed: {error!r}", flush=True)
                continue
            result = future.result()
            record(study, {"key": training.key, **training.about, **result})
            print(f"{told}: { {name: round(value, 4) for name, value in result['metrics'].items()} }", flush=True)


def record(study: str, row: Mapping[str, Any]) -> None:
    with (RECORDED / f"{study}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def records(study: str) -> list[dict[str, Any]]:
    path = RECORDED / f"{study}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _one_thread() -> None:
    os.nice(5)
    import torch

    torch.set_num_threads(1)


def _run(training: Training) -> dict[str, Any]:
    from cdvft.train.run import execute

    from tests.study import variants

    if training.patch is not None:
        patch: Callable[[], None] = getattr(variants, training.patch)
        patch()
    with tempfile.TemporaryDirectory() as folder:
        outcome = execute(replace(training.config, out=Path(folder) / "out"), test=training.test)
        shown = outcome.test or outcome.evaluation
        report = outcome.report
    predictions = None
    if shown.outputs is not None and training.keep_predictions:
        predictions = shown.outputs.argmax(-1).tolist()
        files = sum(path.stat().st_size for name in FIELDS if (path := Path(folder) / "out" / name).is_file())
    figures = ("parameters", "head_parameters", "seconds", "epoch", "train_inputs", "truncated")
    return {
        "metrics": shown.metrics,
        "loss": shown.loss,
        "file_bytes": files,
        **{name: report[name] for name in figures},
        "predictions": predictions,
    }


def by(found: Iterable[dict[str, Any]], *names: str) -> Iterator[tuple[tuple[Any, ...], list[dict[str, Any]]]]:
    """Records grouped by these fields, in order of first appearance."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in found:
        groups.setdefault(tuple(record[name] for name in names), []).append(record)
    yield from groups.items()

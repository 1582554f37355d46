"""One training run: from files to an adapter folder."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from cdvft.backbone import Backbone, choose_device, load_backbone
from cdvft.errors import CdvftError
from cdvft.files import CONFIG_NAME, write_folder
from cdvft.site import Site
from cdvft.targets import ALL_LINEAR, targeted_sites
from cdvft.train.config import LONGEST_DEFAULT, TrainConfig
from cdvft.train.loop import Best, Diverged, Schedule, fit, note
from cdvft.train.objectives import Evaluation
from cdvft.train.plot import plot_curves
from cdvft.train.precision import has_fast_bfloat16
from cdvft.train.recipe import check_method, learning_rates, make_trainee, site_specs
from cdvft.train.resume import STATE_NAME, Saved, fingerprint
from cdvft.train.taskfolder import find_tasks
from cdvft.train.tasks import Prepared, task_for
from cdvft.train.trainee import Trainee

__all__ = ["Outcome", "execute", "run", "run_folder"]

BATCH_SIZE = {"classify": 32, "lm": 8}
REPORT_NAME, PLOT_NAME = "training.json", "training.png"
FEW = 10  # inputs of an evaluation
NOT_COMPARED = {"data", "eval", "out", "resume", "template"}  # of the options, when a training is resumed
WIDE = 256  # hidden size from which mixed precision pays


@dataclass(frozen=True)
class Outcome:
    """`report` as `run` returns it; `test` is the kept epoch on a further file, where one was given."""

    report: dict[str, Any]
    evaluation: Evaluation
    test: Evaluation | None = None


def run(config: TrainConfig) -> dict[str, Any]:
    """Train and write `config.out`. Raises CdvftError kinds for data, options or a base that cannot be used.

    Returns the kept epoch's metrics (accuracy and matthews, pearson, or perplexity), `method`, `parameters` (without
    the head), `head_parameters`, `seconds`, `truncated` (inputs that were cut, training and evaluation), `skipped`
    (completions whose prompt leaves no room), `epoch` (the one kept), `epochs` (those run), `train_inputs`,
    `eval_inputs`, `digest` and `out`. The folder also gets
    `training.json` (this, and every epoch) and `training.png` (the curves).
    """
    if config.data.is_dir():
        raise CdvftError(f"--data {config.data} is a folder; `train_folder` trains the tasks in it")
    return execute(config).report


def run_folder(config: TrainConfig) -> Iterator[tuple[str, dict[str, Any] | CdvftError]]:
    """Every task of the folder `config.data`, a folder each with train.* and perhaps valid.*, on one base, into
    `config.out`/task: (task, report or what was wrong with it), as each ends. A task that fails stops no other.

    Raises CdvftError where the folder has no task, or for a base that cannot be used.
    """
    tasks = find_tasks(config.data)
    if config.eval is not None:
        raise CdvftError("--eval is a file for one task; in a folder of tasks it is each task's own valid.*")
    backbone = load_backbone(config.base, device=choose_device(config.device), dtype=config.dtype)
    for name, (data, evaluation) in tasks.items():
        note(f"task {name}")
        try:
            own = replace(config, data=data, eval=evaluation, out=config.out / name)
            yield name, execute(own, backbone).report
        except CdvftError as error:
            yield name, error


def execute(config: TrainConfig, backbone: Backbone | None = None, test: Path | None = None) -> Outcome:
    """As `run`; on a base that is loaded already if there is one, which is given back as it was. `test`: a file that
    the kept epoch is evaluated on besides.
    """
    started = time.perf_counter()
    holds_adapter = _check_out(config.out)
    device = choose_device(config.device)
    check_method(config)
    task = task_for(config, note)
    backbone = backbone or load_backbone(config.base, device=device, dtype=config.dtype)
    saved = _saved(config, backbone)
    if config.resume and (done := _finished(config.out, saved.marks)):
        note(f"{config.out} holds this training's adapter already")
        return Outcome(done, Evaluation(0.0, {}, ()))
    max_length = _max_length(config.max_length, backbone)
    prepared = task.prepare(backbone, site_specs(config, _sites(config, backbone)), max_length)
    trainee = make_trainee(config, backbone, prepared)
    if holds_adapter:
        note(f"--out {config.out} holds an adapter; this run's takes its place when it ends")
    if (count := len(prepared.evaluation.items)) < FEW:
        note(
            f"evaluated on {count} input{'' if count == 1 else 's'}: the figures mean little; give --eval, or more data"
        )
    try:
        schedule = _schedule(config, backbone)
        best = fit(trainee, prepared.objective, prepared.train.items, prepared.evaluation.items, schedule, saved=saved)
        files, digest = trainee.files(config.base)
        write_folder(config.out, files)
        report = _report(config, prepared, trainee, best) | {"digest": digest, "out": str(config.out)}
        report["seconds"] = round(time.perf_counter() - started, 1)
        tested = None
        if test is not None:
            items = task.encode(test, backbone, max_length).items
            with torch.no_grad():
                tested = prepared.objective.evaluate(trainee, items, schedule.batch_size)
    except Diverged:
        saved.remove()
        raise
    finally:
        trainee.release()
    _write_report(config, saved.marks, report, best)
    saved.remove()
    return Outcome(report, best.evaluation, tested)


def _report(config: TrainConfig, prepared: Prepared, trainee: Trainee, best: Best) -> dict[str, Any]:
    train, evaluation = prepared.train, prepared.evaluation
    return {
        **best.evaluation.metrics,
        "method": config.method,
        "parameters": sum(vector.numel() for vector in trainee.vectors().values()),
        "head_parameters": sum(p.numel() for p in trainee.head.values()),
        "seconds": 0.0,
        "truncated": train.truncated + evaluation.truncated,
        "skipped": train.skipped + evaluation.skipped,
        "epoch": best.epoch,
        "epochs": len(best.history),
        "train_inputs": len(train.items),
        "eval_inputs": len(evaluation.items),
    }


def _write_report(config: TrainConfig, marks: dict[str, str], report: dict[str, Any], best: Best) -> None:
    history = [
        {"epoch": r.epoch, "training_loss": r.loss, "evaluation_loss": r.evaluation_loss, **r.metrics}
        for r in best.history
    ]
    told = {"result": report, "epochs": history, "learning_rates": learning_rates(config), "started_with": marks}
    text = json.dumps(told, indent=2, ensure_ascii=False)
    (config.out / REPORT_NAME).write_text(text + "\n", encoding="utf-8")
    plot_curves(config.out / PLOT_NAME, best.history, best.epoch, f"{config.out.name}: {config.method}")


def _saved(config: TrainConfig, backbone: Backbone) -> Saved:
    """The state of an interrupted training; removed first unless it is to be resumed."""
    options = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in NOT_COMPARED | {"base"}}
    files = {"data": config.data, "eval": config.eval, "template": config.template}
    saved = Saved(config.out, fingerprint(options, files, backbone.info.digest))
    if not config.resume and saved.path.exists():
        note(f"--out {config.out} holds an interrupted training, which starts again; --resume would go on with it")
        saved.remove()
    return saved


def _finished(out: Path, marks: dict[str, str]) -> dict[str, Any] | None:
    """The report of the same training, if it has ended in this folder."""
    try:
        found = json.loads((out / REPORT_NAME).read_text(encoding="utf-8"))
        return dict(found["result"]) if found["started_with"] == marks and (out / CONFIG_NAME).is_file() else None
    except (OSError, ValueError, KeyError):
        return None


def _check_out(out: Path) -> bool:
    """Whether it holds an adapter. Only such a folder, or a new or empty one, is written to; until then what is there
    stays as it is."""
    try:
        holds_adapter = (out / CONFIG_NAME).is_file()
        ours = holds_adapter or (out / STATE_NAME).is_file()
        if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not ours)):
            raise CdvftError(f"--out {out} exists and is no adapter folder; give a new folder")
        there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
        with TemporaryDirectory(dir=there):
            pass
    except OSError as error:
        raise CdvftError(f"--out {out} cannot be written: {error.strerror}; give another folder") from None
    return holds_adapter


def _max_length(wanted: int | None, backbone: Backbone) -> int:
    longest = backbone.info.max_length
    if wanted is not None and wanted > longest:
        raise CdvftError(f"--max-length {wanted}: the base {backbone.info.name} takes at most {longest} tokens")
    return wanted or min(longest, LONGEST_DEFAULT)


def _sites(config: TrainConfig, backbone: Backbone) -> set[Site]:
    """The targeted layers."""
    info = backbone.info
    names = [name.strip() for name in config.targets.split(",") if name.strip()]
    chosen: set[Site] = set()
    for name in names:
        target = ALL_LINEAR if name == ALL_LINEAR else [info.family.projections.get(name, name)]
        sites = targeted_sites({"target_modules": target}, info)
        if not sites:
            known = ", ".join([*info.family.projections, ALL_LINEAR])
            raise CdvftError(
                f"--targets {name}: the base {info.name} has no such linear layer; give {known} or a layer's name"
            )
        chosen |= sites
    if not chosen:
        raise CdvftError("--targets names no layer; the default is q,v")
    return chosen


def _schedule(config: TrainConfig, backbone: Backbone) -> Schedule:
    mixed = config.mixed_precision == "bfloat16"
    if config.mixed_precision == "auto":
        wide = backbone.info.hidden >= WIDE
        mixed = wide and backbone.dtype == torch.float32 and has_fast_bfloat16(backbone.device)
    batch_size = config.batch_size or BATCH_SIZE[config.task]
    rates = learning_rates(config)
    return Schedule(config.epochs, batch_size, rates, config.weight_decay, config.seed, config.patience, mixed)

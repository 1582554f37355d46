"""One training run: from files to an adapter folder."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cdvft.backbone import Backbone, choose_device, load_backbone
from cdvft.errors import CdvftError
from cdvft.files import CONFIG_NAME, write_folder
from cdvft.site import Site
from cdvft.targets import ALL_LINEAR, targeted_sites
from cdvft.train.config import LONGEST_DEFAULT, TrainConfig
from cdvft.train.loop import Schedule, fit, note
from cdvft.train.recipe import check_method, learning_rates, make_trainee, site_specs
from cdvft.train.tasks import task_for

__all__ = ["run"]

BATCH_SIZE = {"classify": 32, "lm": 8}


def run(config: TrainConfig) -> dict[str, Any]:
    """Train and write `config.out`. Raises CdvftError kinds for data, options or a base that cannot be used.

    Returns the kept epoch's metrics (accuracy and matthews, pearson, or perplexity), `parameters` (without the head),
    `head_parameters`, `seconds`, `truncated` (inputs that were cut, training and evaluation), `skipped` (completions
    whose prompt leaves no room), `epoch`, `train_inputs`, `eval_inputs`, `digest` and `out`.
    """
    started = time.perf_counter()
    _check_out(config.out)
    device = choose_device(config.device)
    check_method(config)
    task = task_for(config, note)
    backbone = load_backbone(config.base, device=device, dtype=config.dtype)
    prepared = task.prepare(
        backbone, site_specs(config, _sites(config, backbone)), _max_length(config.max_length, backbone)
    )
    train, evaluation = prepared.train, prepared.evaluation
    trainee = make_trainee(config, backbone, prepared)
    best = fit(trainee, prepared.objective, train.items, evaluation.items, _schedule(config))
    files, digest = trainee.files()
    write_folder(config.out, files)
    parameters = sum(vector.numel() for vector in trainee.vectors().values())
    trainee.release()
    return {
        **best.evaluation.metrics,
        "method": config.method,
        "parameters": parameters,
        "head_parameters": sum(p.numel() for p in trainee.head.values()),
        "seconds": round(time.perf_counter() - started, 1),
        "truncated": train.truncated + evaluation.truncated,
        "skipped": train.skipped + evaluation.skipped,
        "epoch": best.epoch,
        "train_inputs": len(train.items),
        "eval_inputs": len(evaluation.items),
        "digest": digest,
        "out": str(config.out),
    }


def _check_out(out: Path) -> None:
    """Only a new or empty folder, or one that holds an adapter already, is written to; what is there stays as it is."""
    try:
        holds_adapter = (out / CONFIG_NAME).is_file()
        if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not holds_adapter)):
            raise CdvftError(f"--out {out} exists and is no adapter folder; give a new folder")
        there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
        with TemporaryDirectory(dir=there):
            pass
    except OSError as error:
        raise CdvftError(f"--out {out} cannot be written: {error.strerror}; give another folder") from None
    if holds_adapter:
        note(f"--out {out} holds an adapter; this run's takes its place when it ends")


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


def _schedule(config: TrainConfig) -> Schedule:
    batch_size = config.batch_size or BATCH_SIZE[config.task]
    return Schedule(config.epochs, batch_size, learning_rates(config), config.weight_decay, config.seed)

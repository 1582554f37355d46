"""One training run: from files to an adapter folder."""

import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cdvft.backbone import Backbone, choose_device, load_backbone
from cdvft.checkpoint import adapter_files, write_folder
from cdvft.errors import CdvftError
from cdvft.files import CONFIG_NAME
from cdvft.methods import method_named
from cdvft.site import Site
from cdvft.targets import ALL_LINEAR, targeted_sites
from cdvft.train.config import LONGEST_DEFAULT, TrainConfig
from cdvft.train.loop import Schedule, fit, note
from cdvft.train.tasks import task_for
from cdvft.train.trainee import Trainee

__all__ = ["run"]

RATES: Mapping[str, Mapping[str, float]] = {
    "classify": {"circulant": 1e-2, "diagonal": 1e-2, "head": 3e-3},
    "lm": {"circulant": 1e-2, "diagonal": 1e-2, "head": 0.0},
}
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
    method_named(config.method)
    task = task_for(config, note)
    backbone = load_backbone(config.base, device=device, dtype=config.dtype)
    prepared = task.prepare(backbone, _sites(config, backbone), _max_length(config.max_length, backbone))
    train, evaluation = prepared.train, prepared.evaluation
    trainee = Trainee(backbone, prepared.spec, config.seed, prepared.scale, prepared.shift)
    best = fit(trainee, prepared.objective, train.items, evaluation.items, _schedule(config))
    adapter = trainee.adapter()
    write_folder(config.out, adapter_files(adapter, backbone.info))
    return {
        **best.evaluation.metrics,
        "parameters": adapter.num_parameters,
        "head_parameters": adapter.head_parameters,
        "seconds": round(time.perf_counter() - started, 1),
        "truncated": train.truncated + evaluation.truncated,
        "skipped": train.skipped + evaluation.skipped,
        "epoch": best.epoch,
        "train_inputs": len(train.items),
        "eval_inputs": len(evaluation.items),
        "digest": adapter.digest,
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


def _sites(config: TrainConfig, backbone: Backbone) -> dict[Site, Any]:
    """The targeted sites with their hyper-parameters."""
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
    options = {"partition_size": config.partition_size, "num_factors": config.num_factors, "alpha": config.alpha}
    method = method_named(config.method)
    return {site: method.spec(options, site) for site in sorted(chosen)}


def _schedule(config: TrainConfig) -> Schedule:
    default = RATES[config.task]
    given = {
        "circulant": config.lr if config.lr_circulant is None else config.lr_circulant,
        "diagonal": config.lr if config.lr_diagonal is None else config.lr_diagonal,
        "head": config.lr_head,
    }
    rates = {kind: default[kind] if rate is None else rate for kind, rate in given.items()}
    return Schedule(
        config.epochs, config.batch_size or BATCH_SIZE[config.task], rates, config.weight_decay, config.seed
    )

"""`cdvft train classify|lm`: the options are TrainConfig's fields, the defaults its own."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal

import click
from cdvft.errors import CdvftError
from cdvft.train import TrainConfig, train_folder
from cdvft.train import train as run_training

from cdvft_server import demo
from cdvft_server.cli.commands import Command, reported
from cdvft_server.process import tune_process

__all__ = ["train"]

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
POSITIVE, RATE = click.IntRange(min=1), click.FloatRange(min=0)
HELP: dict[str, tuple[Any, str]] = {
    "base": (str, "Model folder or Hub id; the embedded cdvft-tiny if left out."),
    "data": (
        click.Path(exists=True, path_type=Path),
        "Training data: .jsonl, .csv or .tsv; or a folder of tasks, each a folder with train.* and perhaps valid.*.",
    ),
    "eval": (FILE, "Evaluation data; a tenth of the training data if left out."),
    "out": (click.Path(file_okay=False, path_type=Path), "Folder to write the adapter to."),
    "method": (str, "Adapter method: cdvft, sdctft, lamda; through PEFT lora, fourierft, vera, c3a, waveft."),
    "targets": (str, "Layers: q, k, v, o, gate, up, down, module names, or all-linear."),
    "partition_size": (
        POSITIVE,
        "Block length; cdvft: a layer's shorter side, c3a: the sizes' greatest common divisor if left out.",
    ),
    "num_factors": (click.IntRange(min=2), "cdvft: diagonals (2 if left out); there is one circulant less."),
    "alpha": (
        float,
        "Scales the weight change: cdvft, sdctft 1, fourierft 100, waveft 25; by the rank: lora 2 ranks, lamda 1.",
    ),
    "rank": (POSITIVE, "Rank: of lora (8 if left out), lamda (32), vera (256)."),
    "n_frequency": (POSITIVE, "fourierft, sdctft, waveft: coefficients of each layer; 1,000 if left out."),
    "head": (click.Choice(["linear", "standard"]), "One linear layer, or the architecture's own classifier."),
    "max_length": (POSITIVE, "Longest input in tokens; the base's longest, at most 512, if left out."),
    "epochs": (POSITIVE, "Passes over the data; the best one is kept."),
    "batch_size": (POSITIVE, "Inputs per step; 32, for lm 8."),
    "lr": (
        RATE,
        "Peak learning rate of the adapter; cdvft 1e-2 (lm 3e-2), lora 2e-3 (lm 5e-3), others: docs/training.md.",
    ),
    "lr_circulant": (RATE, "Of cdvft's circulants; --lr if left out."),
    "lr_diagonal": (RATE, "Of cdvft's diagonals; --lr if left out."),
    "lr_head": (RATE, "Of the head; 3e-3 if left out."),
    "weight_decay": (RATE, "AdamW's weight decay."),
    "seed": (click.IntRange(min=0), "The same seed gives the same adapter on one machine."),
    "patience": (click.IntRange(min=0), "Stop after so many epochs without a better one; 0: never."),
    "mixed_precision": (
        click.Choice(["auto", "none", "bfloat16"]),
        "Train in bfloat16 where it is faster (evaluation stays in the base's dtype).",
    ),
    "resume": (bool, "Go on with a training that was interrupted; what has ended is left as it is."),
    "dtype": (click.Choice(["auto", "float32", "bfloat16", "float16"]), "Of the base; auto is float32 on the CPU."),
    "device": (str, "auto, cpu or cuda."),
    "template": (FILE, "Chat template (Jinja) for messages; becomes part of the adapter."),
}
ONLY_FOR = {"head": "classify", "lr_head": "classify", "template": "lm"}


@click.group()
def train() -> None:
    """Train an adapter; the last line on standard output is JSON with the evaluation's figures."""


def _options(task: Literal["classify", "lm"]) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        for field in reversed(fields(TrainConfig)):
            if field.name == "task" or ONLY_FOR.get(field.name, task) != task:
                continue
            kind, text = HELP[field.name]
            option = f"--{field.name.replace('_', '-')}"
            if field.name in ("data", "out"):
                function = click.option(option, type=kind, required=True, help=text)(function)
            elif kind is bool:
                function = click.option(option, is_flag=True, help=text)(function)
            elif field.default in (None, MISSING):
                function = click.option(option, type=kind, help=text)(function)
            else:
                function = click.option(option, type=kind, default=field.default, show_default=True, help=text)(
                    function
                )
        return function

    return decorate


def _pushes(function: Any) -> Any:
    """Options for uploading what was trained."""
    for option in (
        click.option("--api-key", metavar="KEY", help="With --push: key for a server that wants one."),
        click.option("--server", metavar="URL", help="With --push: the server; http://127.0.0.1:8000 if left out."),
        click.option("--name", help="With --push: name of the adapter; the --out folder's if left out."),
        click.option("--push", is_flag=True, help="Upload the adapter when it is trained."),
    ):
        function = option(function)
    return function


@train.command(cls=Command)
@_options("classify")
@_pushes
def classify(**options: Any) -> None:
    """Rows have `text`, optional `text2`, and `label`, or `score` for a regression."""
    _run("classify", options)


@train.command(cls=Command)
@_options("lm")
@_pushes
def lm(**options: Any) -> None:
    """Rows have `text`, or `prompt` and `completion`, or `messages`; only completions and answers are learnt."""
    _run("lm", options)


def _trained(config: TrainConfig, name: str | None) -> Iterator[tuple[str | None, dict[str, Any] | CdvftError]]:
    try:
        yield from train_folder(config) if config.data.is_dir() else [(name, run_training(config))]
    except KeyboardInterrupt:
        raise click.ClickException("interrupted; the same command with --resume goes on from here") from None


def _run(task: Literal["classify", "lm"], options: dict[str, Any]) -> None:
    from cdvft_client import CDVFTError

    from cdvft_server.cli.asking import connect

    tune_process()
    base = options.pop("base") or str(demo.base_path())
    push, name, server, api_key = (options.pop(key) for key in ("push", "name", "server", "api_key"))
    if name and not push:
        raise click.UsageError("--name is the adapter's on the server; it goes with --push")
    with reported(CdvftError, CDVFTError, OSError), ExitStack() as stack:
        config = TrainConfig(task=task, base=base, **options)
        if name and config.data.is_dir():
            raise click.UsageError("--name is for one task; those of a folder are uploaded under their folders' names")
        client = stack.enter_context(connect(server, api_key)) if push else None
        if client is not None:
            client.ready()  # before the training, not after it

        from transformers.utils import logging

        logging.disable_progress_bar()
        failed: list[str] = []
        for own, report in _trained(config, name):
            if isinstance(report, CdvftError):
                failed.append(str(own))
                click.echo(f"Error: task {own}: {report}", err=True)
                continue
            if client is not None:
                made = client.upload(report["out"], name=own)
                report |= {"name": made.name, "version": made.version}
            click.echo(json.dumps(report, ensure_ascii=False))
        if failed:
            raise click.ClickException(f"{len(failed)} tasks failed: {', '.join(failed)}")

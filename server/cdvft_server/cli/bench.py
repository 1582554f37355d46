"""`cdvft bench classify|generate`: the options are those of `cdvft_server.bench.settings`, the defaults its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from cdvft.errors import CdvftError

from cdvft_server.bench.settings import CASES, POPULARITIES, Settings, Task
from cdvft_server.bench.shapes import SHAPES
from cdvft_server.cli.commands import Command, reported
from cdvft_server.process import tune_process

__all__ = ["bench"]

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
COUNT = click.IntRange(min=1)
OPTIONS: dict[str, tuple[Any, Any, str]] = {
    "--case": (click.Choice(CASES), None, "What to measure; all of them if left out."),
    "--base": (str, None, "Model folder or Hub id; the embedded cdvft-tiny if left out."),
    "--shape": (click.Choice(list(SHAPES)), None, "Instead of --base: random weights of this shape."),
    "--dtype": (
        click.Choice(["auto", "float32", "bfloat16", "float16"]),
        Settings.dtype,
        "Of the base; auto is float32 on the CPU.",
    ),
    "--device": (str, Settings.device, "auto, cpu or cuda."),
    "--adapters": (COUNT, Settings.adapters, "Random adapters, at most."),
    "--distinct": (COUNT, None, "Different adapters in one batch; as they are drawn if left out."),
    "--method": (str, Settings.method, "Of the adapters: cdvft, lora, fourierft, sdctft, vera, lamda, c3a, waveft."),
    "--popularity": (
        click.Choice(POPULARITIES),
        None,
        "How requests choose adapters; overhead: uniform, then zipf, peers: distinct if left out.",
    ),
    "--requests": (COUNT, Settings.requests, "Requests in a batch."),
    "--max-tokens": (COUNT, Settings.max_tokens, "generate: new tokens of each request."),
    "--runs": (COUNT, Settings.runs, "Rounds in which the sides of a measurement take turns, after a warm-up."),
    "--text": (FILE, None, "JSON lines with text; sentences of our own grammar if left out."),
    "--plot": (click.Path(dir_okay=False, path_type=Path), None, "Write a PNG with a chart for each case."),
}
ONLY_FOR = {"--max-tokens": "generate"}


@click.group()
def bench() -> None:
    """Measure what adapters cost on this machine: ratios within one run, medians of sides that take turns."""


def _options(task: Task) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        flag = click.option(
            "--json", "as_json", is_flag=True, envvar="CDVFT_JSON", help="Print one JSON object a line."
        )
        function = flag(function)
        for name, (kind, default, text) in reversed(OPTIONS.items()):
            if ONLY_FOR.get(name, task) == task:
                function = click.option(name, type=kind, default=default, show_default=True, help=text)(function)
        return function

    return decorate


@bench.command(cls=Command)
@_options("classify")
def classify(**options: Any) -> None:
    """Classifiers with linear heads; tokens are the inputs'."""
    _run("classify", **options)


@bench.command(cls=Command)
@_options("generate")
def generate(**options: Any) -> None:
    """Greedy answers of equal length on a decoder; tokens are the new ones."""
    _run("generate", **options)


def _run(task: Task, as_json: bool, plot: Path | None, case: str | None, **options: Any) -> None:
    settings = Settings(task, cases=(case,) if case else CASES, **options)
    if plot is not None and not plot.absolute().parent.is_dir():
        raise click.UsageError(f"--plot {plot}: there is no folder {plot.parent}; make it first")
    tune_process()
    from cdvft_server.errors import StartRefused

    with reported(CdvftError, StartRefused, OSError):
        settings.check()
        from transformers.utils import logging

        from cdvft_server.bench import report
        from cdvft_server.bench.run import run_bench

        logging.disable_progress_bar()
        rows = []
        for row in run_bench(settings, lambda text: click.echo(text, err=True)):
            rows.append(row)
            if as_json:
                click.echo(report.as_json(row))
            else:
                click.echo(f"{row['case']}: {row['what']} done", err=True)
        if not as_json:
            click.echo(report.tables(rows))
        if plot is not None:
            from cdvft_server.bench.plot import plot as draw

            draw(plot, rows)

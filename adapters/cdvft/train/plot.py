"""The curves of a training as a picture."""

from collections.abc import Sequence
from pathlib import Path

from cdvft.train.loop import Record

__all__ = ["plot_curves"]


def plot_curves(path: Path, history: Sequence[Record], kept: int, title: str) -> None:
    """A PNG: above the loss of every step and of each epoch's evaluation, below its metrics; a line at `kept`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    epochs = [record.epoch for record in history]
    steps = [record.epoch - 1 + (k + 1) / len(record.losses) for record in history for k in range(len(record.losses))]
    above.plot(steps, [loss for record in history for loss in record.losses], alpha=0.35, label="training, each step")
    above.plot(epochs, [record.loss for record in history], marker="o", label="training, mean of the epoch")
    above.plot(epochs, [record.evaluation_loss for record in history], marker="o", label="evaluation")
    above.set_ylabel("loss")
    above.set_title(title)
    for name in history[-1].metrics:
        below.plot(epochs, [record.metrics[name] for record in history], marker="o", label=name)
    below.set_ylabel("evaluation")
    below.set_xlabel("epoch")
    for axes in (above, below):
        axes.axvline(kept, linestyle=":", color="grey")
        axes.legend()
        axes.grid(alpha=0.3)
    FigureCanvasAgg(figure).print_png(str(path))  # type: ignore[no-untyped-call]

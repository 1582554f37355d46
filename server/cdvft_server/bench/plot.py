"""The rows as a picture: one chart for each case, one below the other."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cdvft_server.bench.bench import Row

__all__ = ["plot"]


def plot(path: Path, rows: Sequence[Row]) -> None:
    """A PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cases = list(dict.fromkeys(row["case"] for row in rows))
    figure = Figure(figsize=(8, 4.2 * len(cases)), layout="constrained")
    figure.suptitle("cdvft bench " + ", ".join(rows[0][name] for name in ("task", "base", "method", "dtype", "device")))
    for axes, case in zip(figure.subplots(len(cases), 1, squeeze=False)[:, 0], cases, strict=True):
        DRAWN[case](axes, [row for row in rows if row["case"] == case])
        axes.grid(alpha=0.3)
    FigureCanvasAgg(figure).print_png(str(path))  # type: ignore[no-untyped-call]


def _overhead(axes: Any, rows: Sequence[Row]) -> None:
    used = [row for row in rows if row["adapters"]]
    for popularity in dict.fromkeys(row["popularity"] for row in used):
        own = [row for row in used if row["popularity"] == popularity]
        _line(axes, own, "adapters", "ratio_to_base", popularity)
    axes.set(xlabel="adapters in use", ylabel="throughput over the base's", title="overhead")
    _scales(axes, used, "adapters")


def _merged(axes: Any, rows: Sequence[Row]) -> None:
    for mode in dict.fromkeys(row["mode"] for row in rows if row["adapters"]):
        own = [row for row in rows if row["mode"] == mode]
        _line(axes, own, "segment_tokens", "ratio_to_base", mode)
    axes.set(xlabel="tokens of a segment", ylabel="throughput over the base's", title="merged")
    _scales(axes, rows, "segment_tokens")


def _residency(axes: Any, rows: Sequence[Row]) -> None:
    """The curve of more adapters than fit; the times are in the title."""
    crowded = [row for row in rows if row.get("ratio_to_1x") is not None]
    axes.plot(
        [row["adapters"] / row["fitting"] for row in crowded], [row["ratio_to_1x"] for row in crowded], marker="o"
    )
    times = [f"{row['what']} {row['p50_ms']:.1f} ms" for row in rows if row.get("p50_ms") is not None]
    axes.set(xlabel="adapters in use over those that fit", ylabel="throughput over that at 1")
    axes.set_title("residency: " + "; ".join(times), fontsize="medium")
    axes.set_xticks([row["adapters"] / row["fitting"] for row in crowded])
    axes.set_ylim(0, 1.15 * max(1.0, *(row["ratio_to_1x"] for row in crowded)))


def _peers(axes: Any, rows: Sequence[Row]) -> None:
    bars = axes.barh([row["peer"] for row in rows], [row["ratio"] for row in rows])
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.axvline(1.0, linestyle=":", color="grey")
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.set(xlabel="our throughput over the peer's", title="peers")


def _http(axes: Any, rows: Sequence[Row]) -> None:
    bars = axes.barh([row["what"] for row in rows], [row["p50_ms"] for row in rows])
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.set(xlabel="milliseconds of a batch, median", title="http")


DRAWN: Mapping[str, Callable[[Any, Sequence[Row]], None]] = {
    "overhead": _overhead,
    "residency": _residency,
    "merged": _merged,
    "peers": _peers,
    "http": _http,
}


def _line(axes: Any, rows: Iterable[Row], x: str, y: str, label: str) -> None:
    points = sorted((row[x], row[y]) for row in rows)
    axes.plot([a for a, _ in points], [b for _, b in points], marker="o", label=label)


def _scales(axes: Any, rows: Sequence[Row], x: str) -> None:
    """Logarithmic with a tick at each measured x; y from zero."""
    axes.axhline(1.0, linestyle=":", color="grey")
    ticks = sorted({row[x] for row in rows})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_ylim(0, 1.15 * max(1.0, *(row["ratio_to_base"] for row in rows)))
    axes.legend()

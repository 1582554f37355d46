"""Rows as JSON lines, or as tables for people: one for each case, without the columns that it leaves empty."""

import json
from collections.abc import Iterable, Sequence

from cdvft_server.bench.bench import Row

__all__ = ["as_json", "tables"]

TITLE = ("case", "task", "base", "method", "dtype", "device", "runs")  # the same in all rows of a table


def as_json(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False)


def tables(rows: Iterable[Row]) -> str:
    """Titles and aligned columns, by case and in the order of the rows."""
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(", ".join(f"{row[name]}" for name in TITLE) + " runs", []).append(row)
    return "\n\n".join(f"{title}\n{_table(own)}" for title, own in cases.items())


def _table(rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row if name not in TITLE))
    names = [name for name in names if any(row.get(name) is not None for row in rows)]
    cells = [[_shown(row.get(name)) for name in names] for row in rows]
    numeric = [all(not isinstance(row.get(name), str) for row in rows) for name in names]
    widths = [max(len(row[k]) for row in [names, *cells]) for k in range(len(names))]
    lines = []
    for row in [names, *cells]:
        aligned = zip(row, widths, numeric, strict=True)
        lines.append("  ".join(c.rjust(w) if right else c.ljust(w) for c, w, right in aligned).rstrip())
    return "\n".join(lines)


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int | float) else str(value)

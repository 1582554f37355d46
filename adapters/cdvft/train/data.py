"""Training files: JSON lines, CSV or TSV with a header, to rows that say where they stand. Knows no tokenizer."""

import csv
import io
import json
import math
import random
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cdvft.errors import InvalidData
from cdvft.strictjson import unique_keys

__all__ = ["SUFFIXES", "ClassifyRow", "LmRow", "Note", "hold_out", "label_order", "read_classify", "read_lm"]

Note = Callable[[str], None]
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
KINDS = ".jsonl, .ndjson or .json (JSON lines), .csv or .tsv (with a header)"
HELD_OUT = 0.1
MAX_LABEL = 200  # characters: the most labels of this length still make a config that the server takes


@dataclass(frozen=True)
class Fields:
    """What rows may have. A table's header must have all of one of `forms`."""

    known: frozenset[str]
    forms: tuple[frozenset[str], ...]
    told: str


CLASSIFY = Fields(
    frozenset({"text", "text2", "label", "score"}),
    (frozenset({"text", "label"}), frozenset({"text", "score"})),
    "text, and label or score",
)
LM = Fields(
    frozenset({"text", "prompt", "completion", "messages"}),
    (frozenset({"text"}), frozenset({"prompt", "completion"}), frozenset({"messages"})),
    "text, or prompt and completion, or messages",
)


def _silent(message: str) -> None:
    pass


@dataclass(frozen=True)
class ClassifyRow:
    """`where` is file:line. Exactly one of `label` (integers as written) and `score` is set."""

    where: str
    text: str
    text2: str | None
    label: str | None
    score: float | None


@dataclass(frozen=True)
class LmRow:
    """Exactly one of `text`, `completion` (with `prompt`) and `messages` is set."""

    where: str
    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: tuple[dict[str, str], ...] | None = None


def read_classify(path: Path, note: Note = _silent) -> list[ClassifyRow]:
    """Rows with `text`, optional `text2`, and all `label` or all `score`. Raises InvalidData naming file and line.

    `note` is told of fields that no row format has: they are not used.
    """
    rows: list[ClassifyRow] = []
    forms: dict[object, tuple[str, Any]] = {}  # where each label stands first, and as what
    for where, fields in _read(path, CLASSIFY, note):
        rows.append(_classify_row(where, fields))
        first, form = forms.setdefault(rows[-1].label, (where, fields.get("label")))
        if form != fields.get("label"):
            raise InvalidData(
                f"{first} has the label {form!r}, {where} {fields['label']!r}: write it as a number or as a string"
            )
    scored = [row for row in rows if row.score is not None]
    if scored and len(scored) < len(rows):
        labelled = next(row for row in rows if row.score is None)
        raise InvalidData(f"{labelled.where} has a label, {scored[0].where} a score; a file has one or the other")
    return _not_empty(rows, path)


def read_lm(path: Path, note: Note = _silent) -> list[LmRow]:
    """Rows with `text`, or `prompt` and `completion`, or `messages`; otherwise like `read_classify`."""
    return _not_empty([_lm_row(where, fields) for where, fields in _read(path, LM, note)], path)


def label_order(labels: Sequence[str]) -> tuple[str, ...]:
    """Each label once, sorted: as numbers if all are integers, else as text."""
    names = set(labels)
    if all(_is_integer(name) for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


RowT = TypeVar("RowT", ClassifyRow, LmRow)


def hold_out(rows: Sequence[RowT], seed: int) -> tuple[list[RowT], list[RowT]]:
    """(train, evaluation): about a tenth, of every label its share; a label's only row stays in training."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for position, row in enumerate(rows):
        groups[row.label if isinstance(row, ClassifyRow) else None].append(position)
    generator = random.Random(seed)
    order = [k for group in groups.values() for k in _held_first(group, generator)]
    order.sort()
    held = {position for _, position in order[: max(1, round(len(rows) * HELD_OUT))]}
    train = [row for k, row in enumerate(rows) if k not in held]
    if not train:
        raise InvalidData("one row is not enough to train and evaluate; give --eval or more rows")
    return train, [row for k, row in enumerate(rows) if k in held]


def _held_first(group: list[int], generator: random.Random) -> list[tuple[float, int]]:
    """Rank each row within its label by share, so that the lowest ranks of all labels are a stratified sample."""
    shuffled = generator.sample(group, len(group))
    ranks = [(k + generator.random()) / len(group) for k in range(len(group))]
    return [(rank if len(group) > 1 else 2.0, position) for rank, position in zip(ranks, shuffled, strict=True)]


def _not_empty(rows: list[RowT], path: Path) -> list[RowT]:
    if not rows:
        raise InvalidData(f"{path} has no rows")
    return rows


def _read(path: Path, allowed: Fields, note: Note) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, fields) per row; empty cells of CSV and TSV and nulls are left out."""
    unused: set[str] = set()
    for where, fields in _rows(path, allowed):
        unused.update(fields.keys() - allowed.known)
        yield where, {key: value for key, value in fields.items() if value is not None}
    if unused:
        note(f"{path}: not used: {', '.join(sorted(unused))} (rows may have {', '.join(sorted(allowed.known))})")


def _rows(path: Path, allowed: Fields) -> Iterator[tuple[str, dict[str, Any]]]:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InvalidData(f"{path}: the file name must end in {KINDS}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidData(f"{path} cannot be read: {error.strerror}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidData(f"{path}:{line}: not UTF-8 (byte {error.start}); save the file as UTF-8") from None
    return _json_rows(path, text) if suffix.startswith((".j", ".n")) else _table_rows(path, text, suffix, allowed)


def _json_rows(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        fields = _parsed(f"{path}:{number}", line, "each line must be one JSON object")
        if not isinstance(fields, dict):
            raise InvalidData(f"{path}:{number}: each line must be one JSON object, this is {line.strip()[:40]!r}")
        yield f"{path}:{number}", fields


def _parsed(where: str, text: str, wanted: str) -> Any:
    try:
        value = json.loads(text, object_pairs_hook=unique_keys)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InvalidData(f"{where}: half a surrogate pair in a string; write whole characters") from None
    except (ValueError, RecursionError) as error:
        raise InvalidData(f"{where}: not JSON ({error}); {wanted}") from None
    return value


def _table_rows(path: Path, text: str, suffix: str, allowed: Fields) -> Iterator[tuple[str, dict[str, Any]]]:
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InvalidData(f"{path}:{line}: a NUL character; save the file as UTF-8 text")
    csv.field_size_limit(1 << 30)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="," if suffix == ".csv" else "\t", strict=True)
    header: list[str] | None = None
    while True:
        first_line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InvalidData(f"{path}:{first_line}: {error}") from None
        if not cells:
            continue
        if header is None:
            header = [name.strip() for name in cells]
            _check_header(f"{path}:{first_line}", header, allowed)
        elif len(cells) != len(header):
            raise InvalidData(f"{path}:{first_line}: {len(cells)} columns, the header has {len(header)}")
        else:
            yield f"{path}:{first_line}", {key: cell for key, cell in zip(header, cells, strict=True) if cell}


def _check_header(where: str, header: list[str], allowed: Fields) -> None:
    if not any(form <= set(header) for form in allowed.forms):
        raise InvalidData(f"{where}: the header needs {allowed.told}; it has {', '.join(header)}")
    twice = sorted(name for name in allowed.known if header.count(name) > 1)
    if twice:
        raise InvalidData(f"{where}: the header has {twice[0]} more than once")


def _classify_row(where: str, fields: dict[str, Any]) -> ClassifyRow:
    text2 = _string(where, fields, "text2") if "text2" in fields else None
    if ("label" in fields) == ("score" in fields):
        raise InvalidData(f"{where}: a row has either a label or a score; this has {_names(fields)}")
    label = _label(where, fields["label"]) if "label" in fields else None
    score = _score(where, fields["score"]) if "score" in fields else None
    return ClassifyRow(where, _string(where, fields, "text"), text2, label, score)


def _lm_row(where: str, fields: dict[str, Any]) -> LmRow:
    given = [key for key in ("text", "completion", "messages") if key in fields]
    if len(given) != 1 or ("prompt" in fields) != (given == ["completion"]):
        raise InvalidData(f"{where}: a row has text, or prompt and completion, or messages; this has {_names(fields)}")
    if given == ["messages"]:
        return LmRow(where, messages=_messages(where, fields["messages"]))
    if given == ["text"]:
        return LmRow(where, text=_string(where, fields, "text"))
    return LmRow(where, prompt=_string(where, fields, "prompt"), completion=_string(where, fields, "completion"))


def _messages(where: str, value: Any) -> tuple[dict[str, str], ...]:
    if isinstance(value, str):  # a CSV cell
        value = _parsed(f"{where}: messages", value, 'write [{"role": "...", "content": "..."}, ...]')
    if not isinstance(value, list) or not all(_is_message(message) for message in value):
        raise InvalidData(f'{where}: messages must be a list of {{"role": "...", "content": "..."}}')
    if not any(message["role"] == "assistant" for message in value):
        raise InvalidData(f"{where}: messages has no assistant message to learn")
    if value[0]["role"] == "assistant":
        raise InvalidData(f"{where}: messages starts with the assistant; something must come before its answer")
    return tuple(value)


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"role", "content"} and all(map(_is_text, value.values()))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _string(where: str, fields: dict[str, Any], key: str) -> str:
    value = fields.get(key)
    if value is None:
        raise InvalidData(f"{where}: {key} is missing; this row has {_names(fields)}")
    if not isinstance(value, str) or not value:
        raise InvalidData(f"{where}: {key} must be a string that is not empty, it is {str(value)[:40]!r}")
    return value


def _label(where: str, value: Any) -> str:
    label = str(value) if type(value) is int else value
    if not isinstance(label, str) or not label.strip() or not label.isprintable():
        raise InvalidData(f"{where}: label must be an integer or a printable string, it is {str(value)[:40]!r}")
    if len(label) > MAX_LABEL:
        raise InvalidData(f"{where}: the label {label[:40]!r}... has {len(label)} characters, at most {MAX_LABEL}")
    return label


def _score(where: str, value: Any) -> float:
    try:
        score = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        score = math.nan
    if not math.isfinite(score):
        raise InvalidData(f"{where}: score must be a finite number, it is {str(value)[:40]!r}")
    return score


def _is_integer(name: str) -> bool:
    return name.removeprefix("-").isdecimal() and name.isascii() and str(int(name)) == name


def _names(fields: dict[str, Any]) -> str:
    return ", ".join(fields) or "nothing"

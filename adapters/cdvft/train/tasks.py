"""The two kinds of training task: each reads its rows first, then encodes them for the base that was loaded."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cdvft.adapter import AdapterSpec
from cdvft.adapter import Task as Kind
from cdvft.backbone import Backbone
from cdvft.checkpoint import MAX_TEMPLATE_BYTES
from cdvft.errors import CdvftError, InvalidData
from cdvft.heads import HeadSpec
from cdvft.site import Site
from cdvft.templates import check_template
from cdvft.train.config import TrainConfig
from cdvft.train.data import ClassifyRow, LmRow, Note, hold_out, label_order, read_classify, read_lm
from cdvft.train.items import Encoding, classify_items, lm_items
from cdvft.train.objectives import Classification, LanguageModel, Objective, Regression

__all__ = ["Prepared", "Task", "task_for"]


@dataclass(frozen=True)
class Prepared:
    """`scale` and `shift` turn the head's raw output into scores (regression)."""

    train: Encoding
    evaluation: Encoding
    spec: AdapterSpec
    objective: Objective
    scale: float = 1.0
    shift: float = 0.0


class Task(Protocol):
    def prepare(self, backbone: Backbone, sites: Mapping[Site, Any], max_length: int) -> Prepared: ...

    def encode(self, path: Path, backbone: Backbone, max_length: int) -> Encoding:
        """A further file of the task's rows."""


def task_for(config: TrainConfig, note: Note) -> Task:
    """Reads the training and evaluation files. Raises InvalidData naming file and line."""
    return LmTask(config, note) if config.task == "lm" else ClassifyTask(config, note)


class ClassifyTask:
    """Classification or, where rows have scores, regression."""

    def __init__(self, config: TrainConfig, note: Note) -> None:
        self.config, self.note = config, note
        rows = read_classify(config.data, note)
        if config.eval is None:
            self.train, self.evaluation = hold_out(rows, config.seed)
        else:
            self.train, self.evaluation = rows, read_classify(config.eval, note)
        self.labels = _labels(self.train)
        if (self.evaluation[0].label is None) != (self.labels is None):
            raise InvalidData(
                f"{self.evaluation[0].where} has {_kind(self.evaluation[0])}, {rows[0].where} {_kind(rows[0])}"
            )

    def prepare(self, backbone: Backbone, sites: Mapping[Site, Any], max_length: int) -> Prepared:
        head = _head(self.config.head, backbone, len(self.labels or " "))
        train, evaluation = (self._encode(rows, backbone, max_length) for rows in (self.train, self.evaluation))
        task: Kind = "regression" if self.labels is None else "classification"
        spec = AdapterSpec(self.config.method, sites, task, head, self.labels, max_length)
        if self.labels is not None:
            return Prepared(train, evaluation, spec, Classification())
        has_bias = head.type == "linear" or backbone.info.family.standard_head != "score"
        scale, shift = _spread([row.score or 0.0 for row in self.train], has_bias)
        return Prepared(train, evaluation, spec, Regression(scale), scale, shift)

    def encode(self, path: Path, backbone: Backbone, max_length: int) -> Encoding:
        return self._encode(read_classify(path, self.note), backbone, max_length)

    def _encode(self, rows: list[ClassifyRow], backbone: Backbone, max_length: int) -> Encoding:
        types = getattr(backbone.config, "type_vocab_size", 1)
        return classify_items(rows, self.labels, backbone.tokenizer, max_length, types)


class LmTask:
    """Next-token prediction; the adapter has no head, and a template if `--template` gives one."""

    def __init__(self, config: TrainConfig, note: Note) -> None:
        self.config, self.note = config, note
        self.template = _read_template(config.template)
        rows = read_lm(config.data, note)
        if config.eval is None:
            self.train, self.evaluation = hold_out(rows, config.seed)
        else:
            self.train, self.evaluation = rows, read_lm(config.eval, note)

    def prepare(self, backbone: Backbone, sites: Mapping[Site, Any], max_length: int) -> Prepared:
        if backbone.lm_head is None:
            raise CdvftError(f"the base {backbone.info.name} is an encoder and generates nothing; use train classify")
        train = self._encode(self.train, "training", backbone, max_length)
        evaluation = self._encode(self.evaluation, "evaluation", backbone, max_length)
        return Prepared(
            train, evaluation, AdapterSpec(self.config.method, sites, template=self.template), LanguageModel()
        )

    def encode(self, path: Path, backbone: Backbone, max_length: int) -> Encoding:
        return self._encode(read_lm(path, self.note), "test", backbone, max_length)

    def _encode(self, rows: list[LmRow], name: str, backbone: Backbone, max_length: int) -> Encoding:
        encoding = lm_items(rows, backbone.tokenizer, max_length, self.template)
        if not encoding.items:
            raise InvalidData(
                f"every {name} prompt has {max_length} tokens or more; raise --max-length or shorten them"
            )
        if encoding.skipped:
            longest = backbone.info.max_length
            way = "raise --max-length" if max_length < longest else "that is the most this base takes, shorten them"
            self.note(
                f"{encoding.skipped} of {encoding.skipped + len(encoding.items)} {name} inputs skipped: "
                f"the prompt leaves no room for a completion in {max_length} tokens; {way}"
            )
        return encoding


def _labels(rows: list[ClassifyRow]) -> tuple[str, ...] | None:
    labels = label_order([row.label for row in rows if row.label is not None])
    if len(labels) == 1:
        raise InvalidData(f"every training row has the label {labels[0]!r}; at least two labels are needed")
    return labels or None


def _head(kind: str, backbone: Backbone, outputs: int) -> HeadSpec:
    family = backbone.info.family
    if kind == "linear":
        return HeadSpec("linear", family.linear_pooling, outputs)
    if family.standard_head == "pooler" and not backbone.info.has_pooler:
        raise CdvftError(
            f"--head standard needs the pooler of the base, {backbone.info.name} has none; use --head linear"
        )
    return HeadSpec("standard", family.standard_pooling, outputs)


def _spread(scores: list[float], has_bias: bool) -> tuple[float, float]:
    """(scale, shift) that bring the scores to unit size, around their mean where the head can add one."""
    shift = math.fsum(scores) / len(scores) if has_bias else 0.0
    scale = math.sqrt(math.fsum((score - shift) ** 2 for score in scores) / len(scores))
    return scale or 1.0, shift


def _read_template(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        source = path.read_bytes()
        text = source.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidData(f"--template {path} cannot be read: {error}") from None
    if len(source) > MAX_TEMPLATE_BYTES:
        raise InvalidData(f"--template {path} has {len(source)} bytes, at most {MAX_TEMPLATE_BYTES} are served")
    check_template(text)
    return text


def _kind(row: ClassifyRow) -> str:
    return "a score" if row.label is None else "a label"

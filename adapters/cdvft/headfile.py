"""An adapter's head as checkpoints carry it: tensors, `head`, `labels`, `problem_type`, `task_type`, `max_length`."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cdvft.adapter import AdapterSpec, Task
from cdvft.baseinfo import BaseInfo
from cdvft.errors import InvalidAdapter, TooLarge
from cdvft.files import CONFIG_NAME
from cdvft.heads import HeadSpec, head_shapes

__all__ = ["HEAD_MODULES", "HeadReading", "head_config", "read_head"]

HEAD_MODULES = ("classifier", "score", "pre_classifier")
POOLINGS = ("mean", "first", "last")
TASK_TYPES = ("CAUSAL_LM", "SEQ_CLS")
SINGLE, REGRESSION = "single_label_classification", "regression"


@dataclass(frozen=True)
class HeadReading:
    """What the checkpoint says about task and head; `labels` in head order, for classification only."""

    task: Task
    head: HeadSpec | None
    labels: tuple[str, ...] | None
    max_length: int | None


def read_head(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    base: BaseInfo,
    form_labels: Sequence[str] | None,
    max_labels: int,
) -> HeadReading:
    """`tensors` are those under HEAD_MODULES. Raises InvalidAdapter, or TooLarge beyond `max_labels` outputs."""
    _check_task_type(config, bool(tensors), base)
    if not tensors:
        _refuse_without_head(config, form_labels)
        return HeadReading("lm", None, None, None)
    head = _head_spec(config.get("head"), tensors, base)
    if head.outputs > max_labels:
        raise TooLarge(f"the head has {head.outputs} outputs, at most {max_labels} labels are accepted")
    _check_shapes(head, tensors, base)
    regression = _is_regression(config.get("problem_type"), head.outputs)
    labels = _labels(config.get("labels"), form_labels, head.outputs, regression)
    task: Task = "regression" if regression else "classification"
    return HeadReading(task, head, labels, _max_length(config.get("max_length"), base))


def head_config(spec: AdapterSpec) -> dict[str, Any]:
    """The keys from which `read_head` reads the same again."""
    if spec.head is None:
        return {"task_type": "CAUSAL_LM"}
    return {
        "task_type": "SEQ_CLS",
        "problem_type": REGRESSION if spec.task == "regression" else SINGLE,
        "labels": None if spec.labels is None else list(spec.labels),
        "head": {"type": spec.head.type, "pooling": spec.head.pooling},
        "max_length": spec.max_length,
    }


def _check_task_type(config: Mapping[str, Any], has_head: bool, base: BaseInfo) -> None:
    task_type = config.get("task_type")
    if task_type is not None and task_type not in TASK_TYPES:
        raise InvalidAdapter(
            f"{CONFIG_NAME}: task_type {task_type!r} is not served; served: {', '.join(TASK_TYPES)} or null"
        )
    if task_type == "SEQ_CLS" and not has_head:
        raise InvalidAdapter(
            f"{CONFIG_NAME}: task_type is SEQ_CLS, but there are no head tensors "
            "(base_model.model.classifier.* or .score.*)"
        )
    if task_type == "CAUSAL_LM" and has_head:
        raise InvalidAdapter(f"{CONFIG_NAME}: task_type is CAUSAL_LM, but there are head tensors; say SEQ_CLS")
    if not has_head and base.family.kind == "encoder":
        raise InvalidAdapter(
            f"the base {base.name} is an encoder and generates nothing: its adapters need a head "
            "(base_model.model.classifier.* tensors, task_type SEQ_CLS)"
        )


def _refuse_without_head(config: Mapping[str, Any], form_labels: Sequence[str] | None) -> None:
    if form_labels is not None:
        raise InvalidAdapter("labels were given, but the adapter has no head tensors")
    for key in ("labels", "problem_type", "head", "max_length", "modules_to_save"):
        if config.get(key):
            raise InvalidAdapter(f"{CONFIG_NAME}: {key} is set, but the adapter has no head tensors")


def _head_spec(stated: Any, tensors: Mapping[str, Tensor], base: BaseInfo) -> HeadSpec:
    """From the `head` key, else from the tensors' names: the architecture's own head where they are its tensors."""
    family = base.family
    standard = set(head_shapes(HeadSpec("standard", family.standard_pooling, 1), family, base.hidden))
    if stated is None or stated == {}:
        stated = {"type": "standard" if set(tensors) == standard else "linear"}
    if not isinstance(stated, dict) or not set(stated) <= {"type", "pooling"}:
        raise InvalidAdapter(f'{CONFIG_NAME}: head must be {{"type": ..., "pooling": ...}}, it is {str(stated)[:100]}')
    kind, pooling = stated.get("type"), stated.get("pooling")
    if kind not in ("standard", "linear"):
        raise InvalidAdapter(f"{CONFIG_NAME}: head.type must be standard or linear, it is {str(kind)[:100]!r}")
    own = family.standard_pooling if kind == "standard" else family.linear_pooling
    pooling = own if pooling is None else pooling
    if pooling not in POOLINGS or (kind == "standard" and pooling != own):
        allowed = own if kind == "standard" else ", ".join(POOLINGS)
        raise InvalidAdapter(
            f"{CONFIG_NAME}: head.pooling of a {kind} head must be {allowed}, it is {str(pooling)[:100]!r}"
        )
    if kind == "standard" and family.standard_head == "pooler" and not base.has_pooler:
        raise InvalidAdapter(
            f"the standard head needs the base's pooler, which {base.name} does not have; train a linear head"
        )
    return HeadSpec(kind, pooling, _outputs(tensors))


def _outputs(tensors: Mapping[str, Tensor]) -> int:
    for name in ("classifier.out_proj.weight", "classifier.weight", "score.weight"):
        if name in tensors and tensors[name].dim() == 2:
            return int(tensors[name].shape[0])
    raise InvalidAdapter(f"the head's tensors are incomplete: there are {', '.join(sorted(tensors))[:500]}")


def _check_shapes(head: HeadSpec, tensors: Mapping[str, Tensor], base: BaseInfo) -> None:
    expected = head_shapes(head, base.family, base.hidden)
    where = f"a {head.type} head on {base.family.model_type}"
    for name in sorted(expected.keys() - tensors.keys()):
        raise InvalidAdapter(f"{where} lacks base_model.model.{name} {list(expected[name])}")
    for name, tensor in tensors.items():
        if name not in expected:
            raise InvalidAdapter(f"{where} does not take base_model.model.{name}; it takes {', '.join(expected)}")
        if tuple(tensor.shape) != expected[name]:
            raise InvalidAdapter(
                f"base_model.model.{name} has the shape {list(tensor.shape)}, {where} needs {list(expected[name])}"
            )


def _is_regression(problem_type: Any, outputs: int) -> bool:
    if problem_type is None or problem_type == "":
        return outputs == 1
    if problem_type == "multi_label_classification":
        raise InvalidAdapter(f"{CONFIG_NAME}: multi-label classification is not supported; {SINGLE} or {REGRESSION}")
    if problem_type not in (SINGLE, REGRESSION):
        raise InvalidAdapter(
            f"{CONFIG_NAME}: problem_type must be {SINGLE} or {REGRESSION}, it is {str(problem_type)[:100]!r}"
        )
    if (problem_type == REGRESSION) != (outputs == 1):
        raise InvalidAdapter(
            f"{CONFIG_NAME}: problem_type is {problem_type}, but the head has {outputs} outputs; "
            "regression has exactly one"
        )
    return outputs == 1


def _labels(stated: Any, form: Sequence[str] | None, outputs: int, regression: bool) -> tuple[str, ...] | None:
    if stated is not None and stated != []:
        where, labels = f"{CONFIG_NAME}: labels", stated
        if form is not None and list(form) != stated:
            raise InvalidAdapter(f"labels of the form differ from those of {CONFIG_NAME}; leave them out of the form")
    elif form is not None:
        where, labels = "labels of the form", list(form)
    else:
        return None if regression else tuple(f"LABEL_{i}" for i in range(outputs))
    if regression:
        raise InvalidAdapter(f"{where} are given, but the head has one output: regression has no labels")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise InvalidAdapter(f"{where} must be a list of strings, it is {str(labels)[:100]}")
    if len(labels) != outputs:
        raise InvalidAdapter(f"{where} are {len(labels)}, the head has {outputs} outputs")
    seen: set[str] = set()
    for label in labels:
        if not label.strip() or any(unicodedata.category(char) in ("Cc", "Cs") for char in label):
            raise InvalidAdapter(f"{where} have {label!r}: empty or with control characters")
        if label in seen:
            raise InvalidAdapter(f"{where} have {label!r} twice")
        seen.add(label)
    return tuple(labels)


def _max_length(value: Any, base: BaseInfo) -> int | None:
    if value is None:
        return None
    if type(value) is not int or not 1 <= value <= base.max_length:
        raise InvalidAdapter(
            f"{CONFIG_NAME}: max_length must be an integer from 1 to the base's {base.max_length}, "
            f"it is {str(value)[:100]}"
        )
    return value

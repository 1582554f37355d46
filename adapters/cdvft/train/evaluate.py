"""How good a finished adapter is on a file, by the same forward pass that training evaluates with."""

from dataclasses import dataclass
from pathlib import Path

import torch

from cdvft.adapter import Adapter
from cdvft.backbone import Backbone, load_backbone
from cdvft.checkpoint import read_adapter
from cdvft.errors import CdvftError
from cdvft.files import read_folder
from cdvft.train.data import read_classify
from cdvft.train.items import classify_items
from cdvft.train.native import MethodTrainee
from cdvft.train.objectives import Classification, Objective, Regression

__all__ = ["Report", "evaluate"]


@dataclass(frozen=True)
class Report:
    """`predictions` in the file's order: labels, or scores for regression; `metrics` by name."""

    predictions: tuple[str, ...] | tuple[float, ...]
    metrics: dict[str, float]
    truncated: int


@torch.no_grad()
def evaluate(folder: str | Path, base: str, data: str | Path, *, batch_size: int = 32, dtype: str = "auto") -> Report:
    """Run a classifier or regressor over a data file (JSON lines, CSV, TSV); too long inputs are cut.

    Raises CdvftError kinds for an adapter, a base or data that cannot be used, and for an lm adapter.
    """
    backbone = load_backbone(base, dtype=dtype)
    adapter = read_adapter(read_folder(folder), backbone.info)
    spec = adapter.spec
    if spec.task == "lm":
        raise CdvftError(f"{folder} is a language-model adapter; only classifiers and regressors are evaluated here")
    types = getattr(backbone.config, "type_vocab_size", 1)
    length = spec.max_length or backbone.info.max_length
    encoding = classify_items(read_classify(Path(data)), spec.labels, backbone.tokenizer, length, types)
    objective: Objective = Classification() if spec.labels else Regression(1.0)
    result = objective.evaluate(_trained(backbone, adapter), encoding.items, batch_size)
    if result.outputs is None:
        raise RuntimeError("the objective kept no outputs")
    if spec.labels is None:
        return Report(tuple(result.outputs[:, 0].tolist()), result.metrics, encoding.truncated)
    chosen = result.outputs.argmax(-1).tolist()
    return Report(tuple(spec.labels[k] for k in chosen), result.metrics, encoding.truncated)


def _trained(backbone: Backbone, adapter: Adapter) -> MethodTrainee:
    trainee = MethodTrainee(backbone, adapter.spec, seed=0)
    vectors = {f"{site}/{name}": t for site, own in adapter.tensors.items() for name, t in own.items()}
    trainee.load(vectors | {f"head/{name}": t for name, t in adapter.head.items()})
    return trainee

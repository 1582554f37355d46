"""Training steps: the trainer's own batches, and those of a loop that pads what it draws."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from cdvft.adapter import AdapterSpec
from cdvft.backbone import load_backbone
from cdvft.heads import HeadSpec
from cdvft.methods import method_named
from cdvft.train.data import ClassifyRow
from cdvft.train.items import Batch, classify_items, ordered_batches, shuffled_batches
from cdvft.train.native import MethodTrainee
from cdvft.train.objectives import Classification
from cdvft.train.precision import mixed_precision

__all__ = ["TrainingSteps"]

SIZE = 32


class TrainingSteps:
    """One adapter (q and v) with its optimizer, and the same rows batched in two ways."""

    def __init__(self, path: Path, rows: Sequence[dict[str, Any]]) -> None:
        backbone = load_backbone(str(path))
        method = method_named("cdvft")
        sites = [site for site in backbone.info.sites.values() if site.name.endswith(("query", "value"))]
        specs = {site: method.spec({}, site) for site in sites}
        labels = ("0", "1")
        spec = AdapterSpec("cdvft", specs, "classification", HeadSpec("linear", "mean", 2), labels)
        self.trainee = MethodTrainee(backbone, spec, seed=0)
        rates = {"circulant": 1e-3, "diagonal": 1e-3, "head": 1e-3}
        self.optimizer = torch.optim.AdamW(self.trainee.groups(rates, 0.0))
        own = [ClassifyRow("", row["text"], None, str(row["label"]), None) for row in rows]
        items = classify_items(own, labels, backbone.tokenizer, 128, 1).items
        self.alike = list(shuffled_batches(items, SIZE, (0, 1), self.trainee.device))
        order = random.Random(0).sample(items, len(items))
        drawn = [order[k : k + SIZE] for k in range(0, len(order), SIZE)]
        self.drawn = [batch for items in drawn for batch in ordered_batches(items, SIZE, self.trainee.device)]

    def run(self, batches: Sequence[Batch], mixed: bool) -> None:
        for batch in batches:
            with mixed_precision(self.trainee.backbone, enabled=mixed):
                loss = Classification().loss(self.trainee, batch)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()

    def padded(self) -> None:
        self.run(self.drawn, mixed=False)

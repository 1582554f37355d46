"""The base with one adapter in training: vectors inside the adapted layers, a head, and how both become an Adapter."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn

from cdvft.adapter import Adapter, AdapterSpec
from cdvft.backbone import Backbone
from cdvft.checkpoint import make_adapter
from cdvft.heads import head_logits, init_head, pool
from cdvft.linear import TrainableLinear
from cdvft.methods import method_named
from cdvft.train.items import Batch

__all__ = ["Trainee"]

State = dict[str, Tensor]


class Trainee:
    """Takes the backbone over: its targeted linear layers are replaced for good.

    `scale` and `shift` map the head's raw output to scores during training (regression); `adapter` folds them in.
    """

    def __init__(
        self, backbone: Backbone, spec: AdapterSpec, seed: int, scale: float = 1.0, shift: float = 0.0
    ) -> None:
        self.backbone, self.spec, self.scale, self.shift = backbone, spec, scale, shift
        generator = Generator().manual_seed(seed)
        method = method_named(spec.method)
        self.layers: dict[str, TrainableLinear] = {}
        for site, options in sorted(spec.sites.items()):
            parent, _, child = site.name.rpartition(".")
            owner = backbone.model.get_submodule(parent)
            tensors = method.init(site, options, generator)
            layer = TrainableLinear(getattr(owner, child), site, method, options, tensors).to(backbone.device)
            setattr(owner, child, layer)
            self.layers[site.name] = layer
        info = backbone.info
        head = init_head(spec.head, info.family, info.hidden, generator) if spec.head else {}
        self.head = {name: nn.Parameter(tensor.to(backbone.device)) for name, tensor in head.items()}

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    def trained(self) -> dict[str, nn.Parameter]:
        """Every trained tensor: `<site>/<tensor>` and `head/<tensor>`."""
        vectors = {f"{site}/{name}": p for site, layer in self.layers.items() for name, p in layer.vectors.items()}
        return vectors | {f"head/{name}": p for name, p in self.head.items()}

    def groups(self, rates: Mapping[str, float], weight_decay: float) -> list[dict[str, Any]]:
        """AdamW's parameter groups: `rates` has one for circulant, diagonal and head."""
        members: dict[str, list[nn.Parameter]] = {kind: [] for kind in rates}
        for name, parameter in self.trained().items():
            vector = "circulant" if "circ" in name.rpartition("/")[2] else "diagonal"
            members["head" if name.startswith("head/") else vector].append(parameter)
        return [
            {"params": members[kind], "lr": rate, "rate": rate, "weight_decay": weight_decay}
            for kind, rate in rates.items()
            if members[kind]
        ]

    def hidden(self, batch: Batch) -> Tensor:
        """Last hidden states `[B, T, hidden]`; positions count from each input's start, as in a packed segment."""
        config, family = self.backbone.config, self.backbone.info.family
        first = config.pad_token_id + 1 if family.model_type == "roberta" else 0
        positions = torch.arange(first, first + batch.ids.shape[1], device=batch.ids.device).expand_as(batch.ids)
        inputs: dict[str, Any] = {"input_ids": batch.ids, "position_ids": positions}
        if family.kind == "encoder":
            inputs |= {"attention_mask": batch.mask, "token_type_ids": batch.type_ids}
        else:
            inputs |= {"use_cache": False}  # causal, padded at the right: no real token sees the padding
        states: Tensor = self.backbone.model(**inputs).last_hidden_state
        return states

    def outputs(self, batch: Batch) -> Tensor:
        """The head's outputs `[B, outputs]`, fp32; for regression already scores."""
        head = self.spec.head
        if head is None:
            raise RuntimeError("an lm adapter has no head")
        pooled = [
            pool(states[:length], head.pooling)
            for states, length in zip(self.hidden(batch), batch.lengths, strict=True)
        ]
        return head_logits(head, self.head, torch.stack(pooled), self.backbone.pooler) * self.scale + self.shift

    def next_token_loss(self, batch: Batch) -> tuple[Tensor, int]:
        """(sum of -log p over the tokens from `targets` on, in nats; their number)."""
        states = self.hidden(batch)
        rows: list[int] = []
        columns: list[int] = []
        for row, (length, first) in enumerate(zip(batch.lengths, batch.targets, strict=True)):
            columns += range(int(first), length)
            rows += [row] * (length - int(first))
        before = states[rows, [column - 1 for column in columns]]
        if self.backbone.lm_head is None:
            raise RuntimeError("an encoder has no lm_head")
        logits = self.backbone.lm_head(before).float()
        return nn.functional.cross_entropy(logits, batch.ids[rows, columns], reduction="sum"), len(columns)

    def state(self) -> State:
        """A copy of every trained tensor, on the CPU."""
        return {name: parameter.detach().to("cpu", copy=True) for name, parameter in self.trained().items()}

    @torch.no_grad()
    def load(self, state: State) -> None:
        for name, parameter in self.trained().items():
            parameter.copy_(state[name])

    def adapter(self) -> Adapter:
        """The adapter as it stands, with `scale` and `shift` folded into the head's last layer."""
        tensors = {site: {name: p.detach() for name, p in layer.vectors.items()} for site, layer in self.layers.items()}
        head = {name: p.detach().clone() for name, p in self.head.items()}
        for last in ("classifier.out_proj", "classifier", "score"):
            if f"{last}.weight" in head:
                head[f"{last}.weight"] *= self.scale
                if f"{last}.bias" in head:
                    head[f"{last}.bias"] = head[f"{last}.bias"] * self.scale + self.shift
                break
        return make_adapter(self.spec, tensors, head, self.backbone.info)

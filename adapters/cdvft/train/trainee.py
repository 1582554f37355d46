"""The base with one adapter in training: what trains inside its layers, a head, and the forward passes of a loss."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn

from cdvft.adapter import AdapterSpec
from cdvft.backbone import Backbone
from cdvft.files import AdapterFiles
from cdvft.heads import head_logits, init_head
from cdvft.train.items import Batch

__all__ = ["Trainee"]

State = dict[str, Tensor]
EARLY = 0.3  # of all steps


class Trainee(ABC):
    """Takes the backbone over until `release`. Subclasses put what trains into its layers.

    `scale` and `shift` map the head's raw output to scores during training (regression); files have them folded in.
    """

    def __init__(
        self, backbone: Backbone, spec: AdapterSpec, generator: Generator, scale: float = 1.0, shift: float = 0.0
    ) -> None:
        self.backbone, self.spec, self.scale, self.shift = backbone, spec, scale, shift
        info = backbone.info
        head = init_head(spec.head, info.family, info.hidden, generator) if spec.head else {}
        self.head = {name: nn.Parameter(tensor.to(backbone.device)) for name, tensor in head.items()}
        self._head_alone = False  # trains, says `groups`; then an input goes through the backbone once
        self._seen: dict[tuple[tuple[int, ...], tuple[int, ...]], Tensor] = {}  # (ids, type ids): pooled

    @abstractmethod
    def vectors(self) -> dict[str, nn.Parameter]:
        """What trains inside the layers: `<site>/<tensor>`."""

    @abstractmethod
    def kind(self, name: str) -> str:
        """The learning rate of a vector of this name: `circulant` or `diagonal`, `early` (falls to zero in the first
        EARLY of the steps), `adapter` for all others."""

    @abstractmethod
    def files(self, base: str | None = None) -> tuple[AdapterFiles, str]:
        """The adapter as it stands, as files of PEFT's format, and its digest; `base` is what the config is to call
        the base: for PEFT, where to load it from."""

    @abstractmethod
    def release(self) -> None:
        """Put the base's own layers back."""

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    def trained(self) -> dict[str, nn.Parameter]:
        """Every trained tensor: `<site>/<tensor>` and `head/<tensor>`."""
        return self.vectors() | {f"head/{name}": p for name, p in self.head.items()}

    def groups(self, rates: Mapping[str, float], weight_decay: float) -> list[dict[str, Any]]:
        """AdamW's parameter groups by `rates` (`kind` of vectors, head); a rate of zero freezes its tensors."""
        members: dict[str, list[nn.Parameter]] = {kind: [] for kind in rates}
        for name, parameter in self.trained().items():
            kind = "head" if name.startswith("head/") else self.kind(name)
            parameter.requires_grad_(rates[kind] > 0)
            members[kind].append(parameter)
        self._head_alone = not any(members[kind] and rates[kind] > 0 for kind in members if kind != "head")
        self._seen.clear()
        return [
            {
                "params": members[kind],
                "lr": rate,
                "rate": rate,
                "weight_decay": weight_decay,
                "until": EARLY if kind == "early" else None,
            }
            for kind, rate in rates.items()
            if members[kind] and rate > 0
        ]

    def hidden(self, batch: Batch) -> Tensor:
        """Last hidden states `[B, T, hidden]`; positions count from each input's start, as in a packed segment."""
        config, family = self.backbone.config, self.backbone.info.family
        first = config.pad_token_id + 1 if family.pads_first else 0
        positions = torch.arange(first, first + batch.ids.shape[1], device=batch.ids.device).expand_as(batch.ids)
        inputs: dict[str, Any] = {"input_ids": batch.ids, "position_ids": positions}
        if family.kind == "encoder":
            inputs |= {"attention_mask": batch.mask}
            inputs |= {"token_type_ids": batch.type_ids} if family.token_types else {}
        else:
            inputs |= {"use_cache": False}  # causal, padded at the right: no real token sees the padding
        states: Tensor = self.backbone.model(**inputs).last_hidden_state
        return states

    def outputs(self, batch: Batch) -> Tensor:
        """The head's outputs `[B, outputs]`, fp32; for regression already scores."""
        head = self.spec.head
        if head is None:
            raise RuntimeError("an lm adapter has no head")
        pooled = self._once(batch, head.pooling) if self._head_alone else self._pooled(batch, head.pooling)
        return head_logits(head, self.head, pooled, self.backbone.pooler) * self.scale + self.shift

    def _pooled(self, batch: Batch, pooling: str) -> Tensor:
        return _pooled(self.hidden(batch).float(), batch, pooling)

    @torch.no_grad()
    def _once(self, batch: Batch, pooling: str) -> Tensor:
        """As `_pooled`; an input that was seen before does not go through the backbone again."""
        types = [[]] * len(batch.lengths) if batch.type_ids is None else batch.type_ids.tolist()
        rows = zip(batch.ids.tolist(), types, batch.lengths, strict=True)
        keys = [(tuple(ids[:length]), tuple(own[:length])) for ids, own, length in rows]
        if not all(key in self._seen for key in keys):
            self._seen.update(zip(keys, self._pooled(batch, pooling), strict=True))
        return torch.stack([self._seen[key] for key in keys])

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

    def folded_head(self) -> dict[str, Tensor]:
        """The head's tensors with `scale` and `shift` in its last layer."""
        head = {name: p.detach().clone() for name, p in self.head.items()}
        for last in ("classifier.out_proj", "classifier", "score"):
            if f"{last}.weight" in head:
                head[f"{last}.weight"] *= self.scale
                if f"{last}.bias" in head:
                    head[f"{last}.bias"] = head[f"{last}.bias"] * self.scale + self.shift
                break
        return head


def _pooled(states: Tensor, batch: Batch, pooling: str) -> Tensor:
    """`[B, T, hidden]` to `[B, hidden]`, as `cdvft.heads.pool` does it for one input."""
    if pooling == "first":
        return states[:, 0]
    lengths = torch.tensor(batch.lengths, device=states.device)
    if pooling == "last":
        return states[torch.arange(len(lengths), device=states.device), lengths - 1]
    real = torch.arange(states.shape[1], device=states.device) < lengths[:, None]  # [B, T]
    return (states * real[..., None]).sum(1) / lengths[:, None]

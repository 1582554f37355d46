"""A linear layer with adapters of one method, as PEFT holds them; the maths is the method's, the same that serves."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Generator, Tensor, nn

from cdvft.methods.base import Method
from cdvft.methods.cdvft import Cdvft
from cdvft.methods.lamda import Lamda
from cdvft.methods.sdctft import Sdctft
from cdvft.site import Site
from cdvft.tuner.config import MethodConfig

__all__ = ["CDVFTLinear", "LaMDALinear", "MethodLinear", "SDCTFTLinear"]

BASE = "__base__"  # PEFT's name for "no adapter" among adapter_names


class MethodLinear(nn.Module, BaseTunerLayer):
    """`base_layer(x)` plus the active adapters' `dW x`. Vectors are fp32, and so is the maths, whatever the base's
    dtype and under autocast. A subclass names the method and its tensors.
    """

    method: ClassVar[Method[Any]]
    adapter_layer_names: tuple[str, ...]
    base_layer: Any
    active_adapters: Any  # these three are BaseTunerLayer's
    get_base_layer: Any
    set_adapter: Any
    untrained_names: tuple[str, ...] = ()  # tensors on disk that are no parameters
    other_param_names: tuple[str, ...] = ("specs",)

    def __init__(self, base_layer: nn.Module, site: Site) -> None:
        super().__init__()
        self.base_layer, self.site = base_layer, site
        self.specs: dict[str, Any] = {}
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ParameterDict())
        for name in self.untrained_names:
            setattr(self, name, BufferDict({}, persistent=True))
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._original: Tensor | None = None  # the base's weight while something is merged into it
        self.row_adapters: Sequence[str] | None = None  # set by the model while it runs with adapter_names

    def update_layer(self, adapter_name: str, spec: Any, config: MethodConfig) -> None:
        """A fresh adapter, `[d_out, d_in]` as the layer's; seeded by torch's global generator."""
        generator = Generator().manual_seed(int(torch.randint(2**62, ())))
        weight = self.get_base_layer().weight.detach()
        known = weight.is_floating_point() and weight.device.type != "meta"
        tensors = self.method.init(self.site, spec, generator, weight if known else None)
        weights = {self.site.name: weight} if known else None
        for name, tensor in self.method.frozen({self.site: spec}, generator, weights).items():
            self._untrained(name.removeprefix(f"{self.site.name}."))[adapter_name] = tensor
        for name in self.method.untrained:
            self._untrained(name)[adapter_name] = tensors.pop(name)
        if not config.init_weights:
            tensors = {name: tensor + 0.1 * torch.randn(tensor.shape) for name, tensor in tensors.items()}
        self.specs[adapter_name] = spec
        for name, tensor in tensors.items():
            getattr(self, name)[adapter_name] = nn.Parameter(tensor)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """To the device only: vectors stay fp32 beside a base of any dtype."""
        device = device or self.base_layer.weight.device
        for name in (*self.adapter_layer_names, *self.untrained_names):
            held = getattr(self, name)
            if adapter_name in held and held[adapter_name].device.type != "meta":
                held[adapter_name] = held[adapter_name].to(device)

    def _untrained(self, name: str) -> Any:
        assert name in self.untrained_names, name
        return getattr(self, name)

    def tensors(self, adapter_name: str) -> dict[str, Tensor]:
        """The adapter's tensors by their names on disk, and the site's share of frozen ones."""
        held = {name: getattr(self, name) for name in (*self.adapter_layer_names, *self.untrained_names)}
        found = {name: own[adapter_name] for name, own in held.items() if adapter_name in own}
        frozen = {f"{self.site.name}.{name}": found.pop(name) for name in self.method.frozen_names & found.keys()}
        share = self.method.frozen_of(frozen, self.site, self.specs[adapter_name])
        return {name: tensor.float() for name, tensor in found.items()} | share

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        y: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return y
        if self.row_adapters is not None:
            return self._mixed(x, y, self.row_adapters)
        for name in self.active_adapters:
            if name in self.specs:
                y = y + self._delta(x, name).to(y.dtype)
        return y

    def _mixed(self, x: Tensor, y: Tensor, names: Sequence[str]) -> Tensor:
        """Row b of `x [B, ..., d_in]` takes adapter `names[b]`."""
        if len(names) != len(x):
            raise ValueError(f"adapter_names has {len(names)} names, the batch {len(x)} rows; give one for each row")
        for name in sorted(set(names) & self.specs.keys()):
            rows = torch.tensor([row for row, own in enumerate(names) if own == name], device=x.device)
            y = y.index_add(0, rows, self._delta(x[rows], name).to(y.dtype))
        return y

    def _delta(self, x: Tensor, adapter_name: str) -> Tensor:
        spec = self.specs[adapter_name]
        with torch.autocast(x.device.type, enabled=False):
            tables = self.method.prepare(self.tensors(adapter_name), self.site, spec)
            return self.method.apply(x.float(), tables, self.method.layout(self.site, spec))

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """dW `[d_out, d_in]` in float64, from the definition."""
        return self.method.dense(self.tensors(adapter_name), self.site, self.specs[adapter_name])

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add dW to the base's weight, in float64, rounded once. Raises ValueError where `safe_merge` finds a result
        that is not finite, or where the weight is quantized.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.specs]
        if not names:
            return
        weight = self.get_base_layer().weight
        if not weight.is_floating_point():
            raise ValueError(f"{self.site.name} holds {weight.dtype} weights: dW cannot be added; run it unmerged")
        total = weight.double()
        for name in names:
            total += self.get_delta_weight(name).to(weight.device)
        merged = total.to(weight.dtype)
        if safe_merge and not bool(torch.isfinite(merged).all()):
            raise ValueError(f"{self.site.name}: merging {', '.join(names)} gives values that are not finite")
        if self._original is None:
            self._original = weight.detach().clone()
        weight.data.copy_(merged)
        self.merged_adapters += names

    @torch.no_grad()
    def unmerge(self) -> None:
        """The base's weight as it was, bit for bit."""
        if self._original is not None:
            self.get_base_layer().weight.data.copy_(self._original)
        self._original = None
        self.merged_adapters.clear()

    def __repr__(self) -> str:
        return f"{self.method.name}.{super().__repr__()}"


class CDVFTLinear(MethodLinear):
    """Tensors: `cdvft_diag_in [d_in]`, `cdvft_circ [q_out, q_in, p]`, `cdvft_diag_out [m-1, d_out]`, and for m > 2
    `cdvft_circ_sq [m-2, d_out]`.
    """

    method = Cdvft()
    adapter_layer_names: tuple[str, ...] = ("cdvft_diag_in", "cdvft_circ", "cdvft_diag_out", "cdvft_circ_sq")


class SDCTFTLinear(MethodLinear):
    """Tensors: `sdctft_spectrum [n]`; untrained `sdctft_indices [n]`, int64, row * d_in + column."""

    method = Sdctft()
    adapter_layer_names: tuple[str, ...] = ("sdctft_spectrum",)
    untrained_names: tuple[str, ...] = ("sdctft_indices",)
    other_param_names: tuple[str, ...] = ("specs", *untrained_names)


class LaMDALinear(MethodLinear):
    """Tensors: `lamda_sigma [r, r]`, `lamda_B [d_out, r]`; untrained `lamda_A [r, d_in]`."""

    method = Lamda()
    adapter_layer_names: tuple[str, ...] = ("lamda_sigma", "lamda_B")
    untrained_names: tuple[str, ...] = ("lamda_A",)
    other_param_names: tuple[str, ...] = ("specs", *untrained_names)

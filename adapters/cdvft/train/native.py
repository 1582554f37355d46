"""Training a method of the library: its vectors in the layers, by the same `prepare` and `apply` that serve them."""

from torch import Generator, Tensor, nn

from cdvft.adapter import Adapter, AdapterSpec
from cdvft.backbone import Backbone
from cdvft.checkpoint import adapter_files, make_adapter
from cdvft.files import AdapterFiles
from cdvft.linear import TrainableLinear
from cdvft.methods import method_named
from cdvft.train.trainee import Trainee

__all__ = ["MethodTrainee"]


class MethodTrainee(Trainee):
    """An adapter of `spec.method`, seeded."""

    def __init__(
        self, backbone: Backbone, spec: AdapterSpec, seed: int, scale: float = 1.0, shift: float = 0.0
    ) -> None:
        generator = Generator().manual_seed(seed)
        method = method_named(spec.method)
        self.layers: dict[str, TrainableLinear] = {}
        weights = {site.name: _weight(backbone, site.name) for site in spec.sites}
        self.frozen = method.frozen(spec.sites, generator, weights)
        for site, options in sorted(spec.sites.items()):
            tensors = method.init(site, options, generator, weights[site.name])
            plain = backbone.model.get_submodule(site.name)
            share = method.frozen_of(self.frozen, site, options)
            layer = TrainableLinear(plain, site, method, options, tensors, frozen=share)
            self.layers[site.name] = layer.to(backbone.device)
        super().__init__(backbone, spec, generator, scale, shift)
        for name, layer in self.layers.items():
            _put(backbone, name, layer)

    def vectors(self) -> dict[str, nn.Parameter]:
        untrained = method_named(self.spec.method).untrained
        return {
            f"{site}/{name}": p
            for site, layer in self.layers.items()
            for name, p in layer.vectors.items()
            if name not in untrained
        }

    def kind(self, name: str) -> str:
        if self.spec.method != "cdvft":
            return "early" if name.endswith("/lamda_B") else "adapter"
        return "circulant" if "circ" in name.rpartition("/")[2] else "diagonal"

    def adapter(self) -> Adapter:
        """The adapter as it stands."""
        tensors = {site: {name: p.detach() for name, p in layer.vectors.items()} for site, layer in self.layers.items()}
        return make_adapter(self.spec, tensors, self.folded_head(), self.backbone.info, frozen=self.frozen)

    def files(self, base: str | None = None) -> tuple[AdapterFiles, str]:
        adapter, info = self.adapter(), self.backbone.info
        return adapter_files(adapter, info, {"base_model_name_or_path": base or info.name}), adapter.digest

    def release(self) -> None:
        for name, layer in self.layers.items():
            _put(self.backbone, name, layer.linear)


def _weight(backbone: Backbone, name: str) -> Tensor:
    weight: Tensor = backbone.model.get_submodule(name).weight.detach()
    return weight


def _put(backbone: Backbone, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(backbone.model.get_submodule(parent), child, module)

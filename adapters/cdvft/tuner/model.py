"""The model with its targeted layers replaced, as PEFT's tuners are: one class for each method, no code of its own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from cdvft.errors import InvalidAdapter, UnsupportedBase
from cdvft.identity import base_digest, digest_cache
from cdvft.site import Site
from cdvft.tuner.config import CDVFTConfig, MethodConfig
from cdvft.tuner.layer import BASE, CDVFTLinear, LaMDALinear, MethodLinear, SDCTFTLinear

__all__ = ["CDVFTModel", "LaMDAModel", "MethodModel", "SDCTFTModel"]


class MethodModel(BaseTuner):
    """Adapters of one method on a transformers model. A subclass names the layer class and the tensors' prefix."""

    tuner_layer_cls: ClassVar[type[MethodLinear]]
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """As PEFT's, for the first adapter and every further one; what the config leaves open comes from the model."""
        self._complete(self.peft_config[adapter_name], adapter_name)
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    def _complete(self, config: MethodConfig, adapter_name: str) -> None:
        if (config.head or {}).get("type") == "linear":
            raise ValueError(
                f"adapter {adapter_name} has a linear head, which transformers' classes do not have; "
                "it is for the server and `cdvft`. Train with `--head standard` to load it here"
            )
        if config.base_digest is None:
            config.base_digest = _digest_of(self.model)
        if config.labels is None and getattr(config.task_type, "value", config.task_type) == "SEQ_CLS":
            config.labels = _labels_of(self.model)

    def _create_and_replace(  # noqa: PLR0917 - PEFT's calling convention
        self,
        config: MethodConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **_: Any,
    ) -> None:
        layer = target if isinstance(target, self.tuner_layer_cls) else self._new_layer(target, current_key)
        site = layer.site
        if isinstance(config, CDVFTConfig):
            config.choose_partition_size(site)
        try:
            spec = layer.method.spec(config.method_options(), site)
        except InvalidAdapter as error:
            raise ValueError(f"{current_key}: {str(error).removeprefix('adapter_config.json: ')}") from None
        if isinstance(config, CDVFTConfig):
            config.site_shapes[current_key] = [site.d_out, site.d_in]
        layer.update_layer(adapter_name, spec, config)
        if layer is not target:
            if adapter_name != self.active_adapter:
                layer.requires_grad_(False)  # an adapter that was added later is not trained until it is made active
            self._replace_module(parent, target_name, layer, target)

    def _new_layer(self, target: nn.Module, name: str) -> MethodLinear:
        plain = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if not isinstance(plain, nn.Linear):
            raise ValueError(
                f"{name} is a {type(plain).__name__}; {self.tuner_layer_cls.method.peft_type} adapts linear layers, "
                "name those in target_modules"
            )
        return self.tuner_layer_cls(target, Site(name, plain.in_features, plain.out_features))

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """PEFT's own also copies `weight` over, which a head of several layers does not have."""
        setattr(parent, child_name, new_module)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """While a forward runs with `adapter_names`, its rows' adapters are the layers' and the saved modules'."""
        names = kwargs.pop("adapter_names", None)
        if names is None:
            yield
            return
        layers = [module for module in self.modules() if isinstance(module, MethodLinear)]
        wrappers = [module for module in self.modules() if isinstance(module, AuxiliaryTrainingWrapper)]
        self._check_row_adapters(names, layers)
        beams = kwargs.get("num_beams") or 1
        rows = [name for name in names for _ in range(beams)]
        hooks = []
        try:
            for layer in layers:
                layer.row_adapters = rows
            hooks = [w.register_forward_pre_hook(partial(_hand_over, rows), with_kwargs=True) for w in wrappers]
            yield
        finally:
            for layer in layers:
                layer.row_adapters = None
            for hook in hooks:
                hook.remove()

    def _check_row_adapters(self, names: Sequence[str], layers: Sequence[MethodLinear]) -> None:
        if self.training:
            raise ValueError("adapter_names is for inference: call model.eval() first, or train one adapter at a time")
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"adapter_names must be a list of names, one for each row, it is {names!r}")
        known = set().union(*(layer.specs for layer in layers))
        if unknown := sorted(set(names) - known - {BASE}):
            raise ValueError(f"adapter_names has {', '.join(unknown)}; loaded: {', '.join(sorted(known))} and {BASE}")
        if any(layer.merged for layer in layers):
            raise ValueError("an adapter is merged into the base; call unmerge_adapter() before using adapter_names")


def _hand_over(rows: list[str], _: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {**kwargs, "adapter_names": rows}


def _digest_of(model: nn.Module) -> str | None:
    """The base's digest where the model came from a local folder of safetensors; else the server cannot verify it."""
    folder = Path(str(getattr(model, "name_or_path", "")))
    config = getattr(model, "config", None)
    if config is None or not (folder / "config.json").is_file():
        return None
    try:
        return base_digest(folder, config.to_dict(), digest_cache())
    except (UnsupportedBase, OSError):
        return None


def _labels_of(model: nn.Module) -> list[str] | None:
    """`id2label` in order, where the model's config has names of its own."""
    names = getattr(getattr(model, "config", None), "id2label", None) or {}
    labels = [str(names[k]) for k in sorted(names)]
    generic = [f"LABEL_{k}" for k in range(len(labels))]
    return None if len(labels) < 2 or labels == generic else labels


class CDVFTModel(MethodModel):
    """CDVFT adapters on a transformers model: what `get_peft_model(model, CDVFTConfig(...))` makes."""

    prefix = "cdvft_"
    tuner_layer_cls = CDVFTLinear


class SDCTFTModel(MethodModel):
    """sDCTFT adapters on a transformers model: what `get_peft_model(model, SDCTFTConfig(...))` makes."""

    prefix = "sdctft_"
    tuner_layer_cls = SDCTFTLinear


class LaMDAModel(MethodModel):
    """LaMDA adapters on a transformers model: what `get_peft_model(model, LaMDAConfig(...))` makes."""

    prefix = "lamda_"
    tuner_layer_cls = LaMDALinear

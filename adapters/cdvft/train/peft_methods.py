"""Training through PEFT, for methods that it has and for the comparison with ours: same loop, same head, same files."""

import json
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from peft import C3AConfig, FourierFTConfig, LoraConfig, VeraConfig, WaveFTConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from torch import Generator, Tensor, nn

from cdvft.adapter import AdapterSpec
from cdvft.backbone import Backbone
from cdvft.checkpoint import PREFIX, freeze, read_adapter
from cdvft.files import AdapterFiles
from cdvft.headfile import head_config
from cdvft.targets import target_names
from cdvft.tensorfile import write_tensors
from cdvft.train.trainee import Trainee

__all__ = ["PEFT_METHODS", "PeftTrainee"]

NAME = "default"
PEFT_METHODS: Mapping[str, Any] = {
    "lora": LoraConfig,
    "fourierft": FourierFTConfig,
    "vera": VeraConfig,
    "c3a": C3AConfig,
    "waveft": WaveFTConfig,
}


class PeftTrainee(Trainee):
    """An adapter of one of PEFT's methods on the sites of `spec`, seeded; `options` are its config's."""

    def __init__(
        self, backbone: Backbone, spec: AdapterSpec, seed: int, options: Mapping[str, Any], **output: float
    ) -> None:
        """`output`: the head's `scale` and `shift`."""
        super().__init__(backbone, spec, Generator().manual_seed(seed), **output)
        names = [site.name for site in sorted(spec.sites)]
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Specified to not save vera_A")  # `files` keeps what the key draws
            self.config = PEFT_METHODS[spec.method](target_modules=names, **options)
            torch.manual_seed(seed)
            self.model = get_peft_model(backbone.model, self.config, adapter_name=NAME)  # in its own layers
        backbone.model.to(backbone.device).eval()

    def vectors(self) -> dict[str, nn.Parameter]:
        prefix = f"{self.spec.method}_"
        return {name: p for name, p in self.backbone.model.named_parameters() if prefix in name}

    def kind(self, name: str) -> str:
        return "adapter"

    def files(self, base: str | None = None) -> tuple[AdapterFiles, str]:
        info, spec = self.backbone.info, self.spec
        config = {
            **_plain(self.config.to_dict()),
            **head_config(spec),
            "base_model_name_or_path": base or info.name,
            "base_digest": info.digest,
            "inference_mode": True,
            "target_modules": target_names(spec.sites, info),
        }
        head = self.folded_head()
        if head:
            config["modules_to_save"] = sorted({name.split(".")[0] for name in head})
        state: dict[str, Tensor] = get_peft_model_state_dict(self.model, adapter_name=NAME)
        prefix = PREFIX + info.family.prefixes[0]
        tensors = {prefix + name.removeprefix(PREFIX): t.detach() for name, t in state.items()}
        tensors |= {PREFIX + name: tensor for name, tensor in head.items()}
        text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
        template = None if spec.template is None else spec.template.encode()
        weights = write_tensors({name: tensor.contiguous() for name, tensor in tensors.items()})
        files = AdapterFiles(text.encode(), weights, template)
        adapter = read_adapter(files, info)
        return freeze(files, adapter), adapter.digest

    def release(self) -> None:
        for name, module in list(self.backbone.model.named_modules()):
            if isinstance(module, BaseTunerLayer):
                parent, _, child = name.rpartition(".")
                setattr(self.backbone.model.get_submodule(parent), child, module.get_base_layer())
        if hasattr(self.backbone.model, "peft_config"):
            del self.backbone.model.peft_config  # else PEFT warns of a second adapter


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """PEFT's config as JSON: sets become lists, its enums their values."""
    plain: dict[str, Any] = {}
    for key, value in config.items():
        plain[key] = sorted(value) if isinstance(value, set) else getattr(value, "value", value)
    return plain

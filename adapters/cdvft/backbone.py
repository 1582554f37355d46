"""The frozen base, loaded once and the same way for training and serving."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from cdvft.basefolder import family_at, local_folder
from cdvft.baseinfo import BaseInfo
from cdvft.errors import CdvftError, UnsupportedBase
from cdvft.family import Family
from cdvft.identity import base_digest, checkpoint_tensors, digest_cache
from cdvft.site import Site

__all__ = ["Backbone", "BaseInfo", "choose_device", "load_backbone", "resolve_base"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Backbone:
    """`model` gives last hidden states (RobertaModel, BertModel, LlamaModel); `lm_head` is None for encoders."""

    info: BaseInfo
    path: Path
    config: Any
    model: Any
    lm_head: nn.Module | None
    tokenizer: Any
    eos_ids: frozenset[int]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype  # type: ignore[no-any-return]

    @property
    def pooler(self) -> nn.Module | None:
        return getattr(self.model, "pooler", None)


def choose_device(name: str) -> str:
    """The device that `--device` means: auto is cuda where there is one. Raises CdvftError for one that is missing."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return name
    wanted = re.fullmatch(r"cuda(?::([0-9]{1,4}))?", name)
    if wanted is None:
        raise CdvftError(f"--device {name} is not known; use auto, cpu, cuda or cuda:N")
    if not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]
        raise CdvftError(f"--device {name}: this PyTorch has no CUDA; use cpu or auto")
    if not torch.cuda.is_available():
        raise CdvftError(f"--device {name}: no CUDA device can be used here; use cpu or auto")
    if int(wanted[1] or 0) >= torch.cuda.device_count():
        raise CdvftError(f"--device {name}: the highest is cuda:{torch.cuda.device_count() - 1}")
    return name


def resolve_base(base: str) -> Path:
    """A local folder, or a Hub id that is fetched (or found in the Hub cache). Raises UnsupportedBase."""
    folder = local_folder(base)
    if folder is not None:
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(base, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]))
    except Exception as error:  # the hub client raises many kinds: all mean that the base could not be had
        reason = re.split(r"\.\s|\n", str(error))[0][:200]  # the hub client's advice is for programmers
        raise UnsupportedBase(
            f"--base {base}: no such folder, and no Hub model that can be fetched ({type(error).__name__}: {reason})"
        ) from None


def load_backbone(base: str, *, device: str = "cpu", dtype: str = "auto", name: str | None = None) -> Backbone:
    """Load a frozen base in eval mode, without dropout. Raises UnsupportedBase for what is missing or not served.

    `dtype` auto is float32 on the CPU and the checkpoint's own elsewhere; `device` as for `choose_device`.
    """
    device = choose_device(device)
    if dtype != "auto" and dtype not in DTYPES:
        raise UnsupportedBase(f"dtype {dtype!r} is not known; known: auto, {', '.join(DTYPES)}")
    path = resolve_base(base)
    torch_dtype = DTYPES.get(dtype) or (torch.float32 if torch.device(device).type == "cpu" else "auto")
    with _named_errors(path):
        family = family_at(path)
        config = AutoConfig.from_pretrained(path)
        model, lm_head = _load_model(path, family, torch_dtype, checkpoint_tensors(path))
        tokenizer = AutoTokenizer.from_pretrained(path)
    model.requires_grad_(False).eval().to(device)
    info = BaseInfo(
        name=name or (path.name if Path(base).exists() else base.rsplit("/", 1)[-1]),
        digest=base_digest(path, config.to_dict(), digest_cache()),
        family=family,
        sites=_find_sites(model),
        hidden=config.hidden_size,
        max_length=_max_length(config, family),
        has_pooler=getattr(model, "pooler", None) is not None,
    )
    if lm_head is not None:
        lm_head.requires_grad_(False).to(device)
    return Backbone(info, path, config, model, lm_head, tokenizer, _eos_ids(path, config))


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """What transformers and safetensors raise for a damaged checkpoint, as UnsupportedBase."""
    try:
        yield
    except UnsupportedBase:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, SafetensorError) as error:
        raise UnsupportedBase(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error


def _load_model(path: Path, family: Family, dtype: Any, checkpoint: set[str]) -> tuple[Any, nn.Module | None]:
    if family.kind == "decoder":
        whole, report = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, output_loading_info=True)
        _refuse_missing(report["missing_keys"], path)
        return whole.model, whole.lm_head
    pooled = any(name.endswith("pooler.dense.weight") for name in checkpoint) and family.standard_head == "pooler"
    options = {"add_pooling_layer": pooled} if family.token_types else {}  # DistilBERT has none to leave out
    model, report = AutoModel.from_pretrained(path, dtype=dtype, output_loading_info=True, **options)
    _refuse_missing(report["missing_keys"], path)
    return model, None


def _refuse_missing(missing: Any, path: Path) -> None:
    if missing:
        names = ", ".join(sorted(missing)[:5])
        raise UnsupportedBase(
            f"{path} lacks weights that the model needs ({len(missing)}: {names}); nothing is made up at random"
        )


def _find_sites(model: nn.Module) -> dict[str, Site]:
    linears = {
        name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and not name.startswith("pooler.")
    }
    return {name: Site(name, m.in_features, m.out_features) for name, m in linears.items()}


def _max_length(config: Any, family: Family) -> int:
    """Tokens; RoBERTa's positions start behind the padding id."""
    longest = int(config.max_position_embeddings)
    return longest - int(config.pad_token_id) - 1 if family.pads_first else longest


def _eos_ids(path: Path, config: Any) -> frozenset[int]:
    from transformers import GenerationConfig

    has_own = (path / "generation_config.json").is_file()
    eos = GenerationConfig.from_pretrained(path).eos_token_id if has_own else config.eos_token_id
    return frozenset() if eos is None else frozenset([eos] if isinstance(eos, int) else eos)

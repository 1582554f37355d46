"""The bases of arXiv 2505.00580 as sites, and the figures of its tables."""

from typing import Any

from cdvft.methods import Method
from cdvft.methods.cdvft import Cdvft, CdvftSpec
from cdvft.methods.fourierft import FourierFt, FourierFtSpec
from cdvft.methods.lora import Lora, LoraSpec
from cdvft.methods.vera import Vera, VeraSpec
from cdvft.site import Site

__all__ = ["COLUMNS", "LLAMA_GSM8K", "LLAMA_QV", "ROBERTA_QV", "flops", "parameters", "square"]

ROBERTA_QV = [Site(f"layer.{i}.{name}", 768, 768) for i in range(12) for name in ("query", "value")]
LLAMA_QV = [Site(f"layers.{i}.{name}", 4096, 4096) for i in range(32) for name in ("q_proj", "v_proj")]
LLAMA_GSM8K = [
    site
    for i in range(32)
    for site in (
        *(Site(f"layers.{i}.{name}", 4096, 4096) for name in ("q_proj", "k_proj", "v_proj")),
        Site(f"layers.{i}.up_proj", 4096, 11008),
        Site(f"layers.{i}.down_proj", 11008, 4096),
    )
]


def parameters(sites: list[Site], method: Method[Any], spec: Any) -> int:
    return sum(method.num_parameters(site, spec) for site in sites)


def flops(sites: list[Site], method: Method[Any], spec: Any) -> float:
    """One token, as the paper counts."""
    return sum(method.paper_flops(site, spec) or 0.0 for site in sites)


def square(p: int) -> CdvftSpec:
    """The paper's counts for LLaMA come out on a square grid of blocks."""
    return CdvftSpec(p, block_grid="square", padding="cyclic")


_OURS, _LORA, _FOURIER, _VERA = Cdvft(), Lora(), FourierFt(), Vera()
_SPECTRUM = FourierFtSpec(1000, 150.0)
# (what, by the formulas, as printed)
COLUMNS: list[tuple[str, float, str]] = [
    ("numbers, CDVFT, RoBERTa-base q and v", parameters(ROBERTA_QV, _OURS, CdvftSpec(768)), "0.06M"),
    ("numbers, CDVFT, LLaMA2-7B q and v, p = 4096", parameters(LLAMA_QV, _OURS, CdvftSpec(4096)), "0.79M"),
    ("numbers, CDVFT, LLaMA2-7B q and v, p = 2048", parameters(LLAMA_QV, _OURS, CdvftSpec(2048)), "1.05M"),
    ("numbers, CDVFT, LLaMA2-7B on GSM8K, p = 4096", parameters(LLAMA_GSM8K, _OURS, square(4096)), "4.51M"),
    ("numbers, CDVFT, LLaMA2-7B on GSM8K, p = 2048", parameters(LLAMA_GSM8K, _OURS, square(2048)), "7.26M"),
    ("numbers, LoRA r = 64, LLaMA2-7B q and v", parameters(LLAMA_QV, _LORA, LoraSpec(64, 16.0)), "33.55M"),
    ("numbers, LoRA r = 16, LLaMA2-7B on GSM8K", parameters(LLAMA_GSM8K, _LORA, LoraSpec(16, 16.0)), "28.05M"),
    ("FLOPs, CDVFT, RoBERTa-base q and v", flops(ROBERTA_QV, _OURS, CdvftSpec(768)), "2.72M"),
    ("FLOPs, CDVFT, LLaMA2-7B q and v, p = 4096", flops(LLAMA_QV, _OURS, CdvftSpec(4096)), "0.05G"),
    ("FLOPs, CDVFT, LLaMA2-7B q and v, p = 2048", flops(LLAMA_QV, _OURS, CdvftSpec(2048)), "0.06G"),
    ("FLOPs, FourierFT, RoBERTa-base q and v", flops(ROBERTA_QV, _FOURIER, _SPECTRUM), "1.41G"),
    ("FLOPs, FourierFT, LLaMA2-7B q and v", flops(LLAMA_QV, _FOURIER, _SPECTRUM), "133.14G"),
    ("FLOPs, LoRA r = 16, ViT-base q and v", flops(ROBERTA_QV, _LORA, LoraSpec(16, 16.0)), "0.61M"),
    ("FLOPs, VeRA r = 256, ViT-base q and v", flops(ROBERTA_QV, _VERA, VeraSpec(256)), "9.48M"),
]

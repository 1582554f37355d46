"""The paper's table (arXiv 2505.00580), reproduced from the formulas and from the method's own counts."""

import pytest
import torch
from cdvft.accounting import adapter_cost, fourierft_flops, lora_flops, lora_parameters, vera_flops
from cdvft.checkpoint import adapter_files, read_adapter
from cdvft.methods.cdvft import Cdvft, CdvftSpec
from cdvft.site import Site

from tests.tiny import random_adapter

METHOD = Cdvft()
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


def parameters(sites: list[Site], spec: CdvftSpec) -> int:
    return sum(METHOD.num_parameters(site, spec) for site in sites)


def flops(sites: list[Site], spec: CdvftSpec) -> float:
    return sum(METHOD.flops(site, spec) for site in sites)


def square(p: int) -> CdvftSpec:
    return CdvftSpec(p, block_grid="square", padding="cyclic")


@pytest.mark.parametrize(
    ("sites", "spec", "expected"),
    [
        (ROBERTA_QV, CdvftSpec(768), 55_296),
        (LLAMA_QV, CdvftSpec(4096), 786_432),
        (LLAMA_QV, CdvftSpec(2048), 1_048_576),
        (LLAMA_GSM8K, square(4096), 4_505_600),
        (LLAMA_GSM8K, square(2048), 7_258_112),
    ],
)
def test_cdvft_parameters(sites: list[Site], spec: CdvftSpec, expected: int) -> None:
    assert parameters(sites, spec) == expected


def test_lora_parameters() -> None:
    roberta = sum(lora_parameters(site, 8) for site in ROBERTA_QV)
    assert round(roberta / parameters(ROBERTA_QV, CdvftSpec(768)), 2) == 5.33
    assert sum(lora_parameters(site, 64) for site in LLAMA_QV) == 33_554_432
    assert sum(lora_parameters(site, 16) for site in LLAMA_GSM8K) == 28_049_408


def test_flops_per_token() -> None:
    assert round(flops(ROBERTA_QV, CdvftSpec(768)) / 1e6, 3) == 2.724
    assert round(flops(LLAMA_QV, CdvftSpec(4096)) / 1e9, 4) == 0.0482
    assert round(flops(LLAMA_QV, CdvftSpec(2048)) / 1e9, 4) == 0.0587
    assert round(sum(map(fourierft_flops, ROBERTA_QV)) / 1e9, 3) == 1.413
    assert round(sum(map(fourierft_flops, LLAMA_QV)) / 1e9, 3) == 133.144
    assert round(sum(lora_flops(site, 16) for site in ROBERTA_QV) / 1e6, 3) == 0.608
    assert round(sum(vera_flops(site, 256) for site in ROBERTA_QV) / 1e6, 3) == 9.480


def test_the_papers_claim_of_51_89_contradicts_its_table() -> None:
    ratio = sum(map(fourierft_flops, ROBERTA_QV)) / flops(ROBERTA_QV, CdvftSpec(768))
    assert round(ratio) == 519


def test_costs_of_an_adapter(llama) -> None:
    adapter = random_adapter(llama.info, 1, "classification", list("abc"), targets=["q_proj", "down_proj"])
    files = adapter_files(adapter, llama.info)
    cost = adapter_cost(read_adapter(files, llama.info), files)
    # q: 32 x 32, p = 32; down: 32 x 48, p = 16: grid 2 x 3
    assert [site.parameters for site in cost.sites] == [48 + 2 * 3 * 16 + 32, 3 * 32] * 2
    assert cost.parameters == sum(site.parameters for site in cost.sites) == adapter.num_parameters
    assert cost.flops == sum(site.flops for site in cost.sites)
    assert cost.head_parameters == 3 * 32 + 3
    assert cost.disk_bytes == len(files.config) + len(files.weights)
    assert cost.head_device_bytes == 4 * cost.head_parameters
    assert [site.device_bytes for site in cost.sites] == [4 * 80 + 8 * 6 * 9, 4 * 64 + 8 * 17] * 2
    assert cost.device_bytes == sum(site.device_bytes for site in cost.sites)


def test_sizes_in_the_design_are_right() -> None:
    """RoBERTa-base: 216 KiB of fp32 vectors; LLaMA2-7B: 3 MiB."""
    size = torch.finfo(torch.float32).bits // 8
    assert size * parameters(ROBERTA_QV, CdvftSpec(768)) == 216 * 1024
    assert size * parameters(LLAMA_QV, CdvftSpec(4096)) == 3 * 1024 * 1024

"""The paper's table (arXiv 2505.00580), reproduced from the formulas and from the method's own counts."""

import math

import pytest
import torch
from cdvft.accounting import adapter_cost
from cdvft.checkpoint import adapter_files, read_adapter
from cdvft.methods.cdvft import Cdvft, CdvftSpec
from cdvft.methods.fourierft import FourierFt, FourierFtSpec
from cdvft.methods.lora import Lora, LoraSpec
from cdvft.methods.vera import Vera, VeraSpec
from cdvft.site import Site

from tests.paper import COLUMNS, LLAMA_GSM8K, LLAMA_QV, ROBERTA_QV, flops, parameters, square
from tests.tiny import random_adapter

METHOD = Cdvft()
FOURIERFT = FourierFtSpec(1000, 150.0)


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
    assert parameters(sites, METHOD, spec) == expected


def test_lora_parameters() -> None:
    roberta = parameters(ROBERTA_QV, Lora(), LoraSpec(8, 16.0))
    assert round(roberta / parameters(ROBERTA_QV, METHOD, CdvftSpec(768)), 2) == 5.33
    assert parameters(LLAMA_QV, Lora(), LoraSpec(64, 16.0)) == 33_554_432
    assert parameters(LLAMA_GSM8K, Lora(), LoraSpec(16, 16.0)) == 28_049_408


def test_flops_per_token() -> None:
    assert round(flops(ROBERTA_QV, METHOD, CdvftSpec(768)) / 1e6, 3) == 2.724
    assert round(flops(LLAMA_QV, METHOD, CdvftSpec(4096)) / 1e9, 4) == 0.0482
    assert round(flops(LLAMA_QV, METHOD, CdvftSpec(2048)) / 1e9, 4) == 0.0587
    assert round(flops(ROBERTA_QV, FourierFt(), FOURIERFT) / 1e9, 3) == 1.413
    assert round(flops(LLAMA_QV, FourierFt(), FOURIERFT) / 1e9, 3) == 133.144
    assert round(flops(ROBERTA_QV, Lora(), LoraSpec(16, 16.0)) / 1e6, 3) == 0.608
    assert round(flops(ROBERTA_QV, Vera(), VeraSpec(256)) / 1e6, 3) == 9.480


@pytest.mark.parametrize(("what", "value", "printed"), COLUMNS)
def test_the_papers_columns_come_out(what: str, value: float, printed: str) -> None:
    unit = {"M": 1e6, "G": 1e9}[printed[-1]]
    digits = len(printed) - printed.index(".") - 2
    assert round(value / unit, digits) == float(printed[:-1]), what


def test_the_papers_claim_of_51_89_contradicts_its_table() -> None:
    ratio = flops(ROBERTA_QV, FourierFt(), FOURIERFT) / flops(ROBERTA_QV, METHOD, CdvftSpec(768))
    assert round(ratio) == 519


def test_what_is_computed_here() -> None:
    """For d = 768: two real FFTs of 2.5 N log2 N, 8 for each of 385 complex products, two diagonals; FourierFT's 1,000
    coefficients take 4 each instead of the products."""
    fft = 2 * 2.5 * 768 * math.log2(768)
    assert METHOD.flops(ROBERTA_QV[0], CdvftSpec(768)) == pytest.approx(fft + 8 * 385 + 2 * 768)
    assert FourierFt().flops(ROBERTA_QV[0], FOURIERFT) == pytest.approx(fft + 4000)
    assert Lora().flops(ROBERTA_QV[0], LoraSpec(8, 16.0)) == 2 * 8 * 2 * 768


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
    assert size * parameters(ROBERTA_QV, METHOD, CdvftSpec(768)) == 216 * 1024
    assert size * parameters(LLAMA_QV, METHOD, CdvftSpec(4096)) == 3 * 1024 * 1024

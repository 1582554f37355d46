"""What an adapter costs: trained numbers, bytes, FLOPs per token; and the formulas by which the literature counts them.

FLOPs here follow the tables of arXiv 2505.00580: a real FFT of length N is 5 N log2 N, the circulant's own FFT included
(serving keeps that spectrum and saves it: a third). Its claim of 51.89 times fewer FLOPs than FourierFT contradicts its
own table: 1.413G against 2.724M for RoBERTa-base is 519 times.
"""

import math
from dataclasses import dataclass

from cdvft.adapter import Adapter
from cdvft.files import AdapterFiles
from cdvft.prepared import prepare_adapter
from cdvft.site import Site

__all__ = [
    "AdapterCost",
    "SiteCost",
    "adapter_cost",
    "fourierft_flops",
    "lora_flops",
    "lora_parameters",
    "vera_flops",
]


@dataclass(frozen=True)
class SiteCost:
    """One site: trained numbers, FLOPs of one token, bytes of its tables in a bank row."""

    site: Site
    parameters: int
    flops: float
    device_bytes: int


@dataclass(frozen=True)
class AdapterCost:
    """`parameters` and `flops` (per token) are without the head; bytes are of the files, one bank row, the head, and
    what all adapters of the bank share."""

    parameters: int
    head_parameters: int
    flops: float
    disk_bytes: int
    device_bytes: int
    head_device_bytes: int
    shared_device_bytes: int
    sites: tuple[SiteCost, ...]


def adapter_cost(adapter: Adapter, files: AdapterFiles) -> AdapterCost:
    """The costs of an adapter as read from `files`, per site and in total."""
    prepared = prepare_adapter(adapter)
    method = adapter.method
    sites = tuple(
        SiteCost(
            site=site,
            parameters=method.num_parameters(site, spec),
            flops=method.flops(site, spec),
            device_bytes=sum(t.numel() * t.element_size() for t in prepared.tables[site.name].values()),
        )
        for site, spec in sorted(adapter.spec.sites.items())
    )
    return AdapterCost(
        parameters=adapter.num_parameters,
        head_parameters=adapter.head_parameters,
        flops=sum(site.flops for site in sites),
        disk_bytes=files.size,
        device_bytes=prepared.nbytes,
        head_device_bytes=prepared.head_nbytes,
        shared_device_bytes=prepared.shared_nbytes,
        sites=sites,
    )


def lora_parameters(site: Site, rank: int) -> int:
    """`r (d_in + d_out)`."""
    return rank * (site.d_in + site.d_out)


def lora_flops(site: Site, rank: int) -> float:
    """One token, a multiply-add counted as one: two thin products and the addition to the output."""
    return rank * (site.d_in + site.d_out) + site.d_out


def vera_flops(site: Site, rank: int) -> float:
    """One token, a multiply-add counted as one: LoRA's, and the two scalings by vectors."""
    return lora_flops(site, rank) + rank + site.d_out


def fourierft_flops(site: Site) -> float:
    """One token as the paper counts it: `(5 log2 N + 4) N` with N = d_in d_out: a 2-D FFT for every token."""
    size = site.d_in * site.d_out
    return (5 * math.log2(size) + 4) * size

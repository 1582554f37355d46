"""What an adapter costs: trained numbers, bytes, and FLOPs per token, as computed here and as the paper counts.

The tables of arXiv 2505.00580 take 5 N log2 N for a real FFT of length N, count the circulant's own FFT (serving keeps
that spectrum and saves it), a 2-D FFT for each of FourierFT's tokens, and a multiply-add of LoRA's as one. The claim of
51.89 times fewer FLOPs than FourierFT contradicts the table: 1.413G against 2.724M for RoBERTa-base is 519 times.
"""

from dataclasses import dataclass

from cdvft.adapter import Adapter
from cdvft.files import AdapterFiles
from cdvft.prepared import prepare_adapter
from cdvft.site import Site

__all__ = ["AdapterCost", "SiteCost", "adapter_cost"]


@dataclass(frozen=True)
class SiteCost:
    """One site: trained numbers, FLOPs of one token (`Method.flops`, `Method.paper_flops`), bytes of a bank row."""

    site: Site
    parameters: int
    flops: float
    paper_flops: float | None
    device_bytes: int


@dataclass(frozen=True)
class AdapterCost:
    """`parameters` and `flops` (per token) are without the head; bytes are of the files, one bank row, the head, and
    what all adapters of the bank share."""

    parameters: int
    head_parameters: int
    flops: float
    paper_flops: float | None
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
            paper_flops=method.paper_flops(site, spec),
            device_bytes=sum(t.numel() * t.element_size() for t in prepared.tables[site.name].values()),
        )
        for site, spec in sorted(adapter.spec.sites.items())
    )
    paper = [site.paper_flops for site in sites]
    return AdapterCost(
        parameters=adapter.num_parameters,
        head_parameters=adapter.head_parameters,
        flops=sum(site.flops for site in sites),
        paper_flops=None if None in paper else sum(flops or 0.0 for flops in paper),
        disk_bytes=files.size,
        device_bytes=prepared.nbytes,
        head_device_bytes=prepared.head_nbytes,
        shared_device_bytes=prepared.shared_nbytes,
        sites=sites,
    )

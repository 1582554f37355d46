"""The numerical half of an upload's self-test: what will be served against what the checkpoint means."""

import math

import torch

from cdvft.adapter import Adapter
from cdvft.prepared import PreparedAdapter

__all__ = ["probe_sites"]

PROBES = 4  # random inputs per site
SEED = 20250500580


@torch.no_grad()
def probe_sites(adapter: Adapter, prepared: PreparedAdapter) -> float:
    """The largest relative error, over all sites, of fp32 `apply(x)` against float64 `dense(dW) x`.

    Per site: max |apply - dense x| / max |dense x| over seeded standard normal x; infinite for values that are not
    finite, or where dense gives zero and apply does not. Callers accept at most 1e-3.
    """
    method, worst = adapter.method, 0.0
    for site, spec in sorted(adapter.spec.sites.items()):
        x = torch.randn(PROBES, site.d_in, generator=torch.Generator().manual_seed(SEED))
        tables = {**prepared.tables[site.name], **prepared.shared.get(site.name, {})}
        served = method.apply(x, tables, prepared.layouts[site.name]).double()
        exact = method.reference(x.double(), adapter.site_tensors(site), site, spec)
        worst = max(worst, _relative(float((served - exact).abs().max()), float(exact.abs().max())))
    return worst


def _relative(difference: float, size: float) -> float:
    if not math.isfinite(difference) or not math.isfinite(size):
        return math.inf
    if size == 0.0:
        return 0.0 if difference == 0.0 else math.inf
    return difference / size

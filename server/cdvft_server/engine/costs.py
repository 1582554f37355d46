"""What a token costs unmerged and merged on this machine: measured at start, on the base's own layers.

Unmerged, a token costs its place in the base's large product and the method's `apply`, taken as proportional to the
method's FLOPs. Merged, it leaves that product for one of its own, which costs a fixed part (the matrix is read) and a
part for each token. Both are lines in the number of tokens; where they cross, merging begins to pay.
"""

import logging
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from cdvft.backbone import Backbone
from cdvft.errors import InvalidAdapter
from cdvft.kernels import Wanted
from cdvft.linear import AdapterContext, BankSlice
from cdvft.methods import METHODS, Method
from cdvft.methods.base import Tensors
from cdvft.site import Site
from torch import Generator, Tensor
from torch.nn import functional

__all__ = ["CostModel", "Line", "fit_costs"]

log = logging.getLogger(__name__)

FEW, MANY, LARGE = 16, 256, 1024  # tokens of the products that are timed
RUNS = 7
SECONDS = 0.2  # of one kind of call; two runs at least
MATRICES = 4  # of one shape, taken in turn
TOKENS_EACH = 16  # neighbours of one adapter in the timed batch


@dataclass(frozen=True)
class Line:
    """Seconds of n tokens: `fixed + each * n`."""

    fixed: float
    each: float

    @staticmethod
    def through(few: float, many: float) -> "Line":
        """Measured at FEW and MANY tokens."""
        each = max(many - few, 0.0) / (MANY - FEW)
        return Line(max(few - FEW * each, 0.0), each)


@dataclass(frozen=True)
class CostModel:
    """`products[d_out, d_in]`: a product with a matrix that nothing else in the batch uses; `base[d_out, d_in]`:
    seconds of a token more in the base's large product; `flop[method]`: of one FLOP of an unmerged token."""

    products: Mapping[tuple[int, int], Line] = field(default_factory=dict)
    base: Mapping[tuple[int, int], float] = field(default_factory=dict)
    flop: Mapping[str, float] = field(default_factory=dict)

    def least_tokens(self, method: str, flops: float, sites: Iterable[Site]) -> float:
        """From how many tokens on an adapter's share of a batch is cheaper merged; inf where it never is. `flops` are
        those of one token in all `sites` together."""
        shapes = [(site.d_out, site.d_in) for site in sites]
        if method not in self.flop or not all(shape in self.products for shape in shapes):
            return float("inf")
        fixed = sum(self.products[shape].fixed for shape in shapes)
        saved = flops * self.flop[method] - sum(self.products[shape].each - self.base[shape] for shape in shapes)
        return fixed / saved if saved > 0 else float("inf")


@torch.inference_mode()
def fit_costs(backbone: Backbone, kernel: Wanted = "auto") -> CostModel:
    """A second or two, more where a single product takes long; in the thread, and with the number of threads, that will
    serve. What fails is left out: it is never merged by `auto`.
    """
    by_shape: dict[tuple[int, int], list[Site]] = {}
    for site in backbone.info.sites.values():
        by_shape.setdefault((site.d_out, site.d_in), []).append(site)
    products, base = {}, {}
    for shape, sites in by_shape.items():
        weights = [backbone.model.get_submodule(site.name).weight for site in sites[:MATRICES]]
        seconds = {n: _product_seconds(weights, n) for n in (FEW, MANY, LARGE)}
        products[shape] = Line.through(seconds[FEW], seconds[MANY])
        base[shape] = (seconds[LARGE] - seconds[MANY]) / (LARGE - MANY)
    name = backbone.info.family.projections["q"]
    site = next(site for site in backbone.info.sites.values() if site.name.endswith(name))
    flop = {}
    for method in METHODS:
        try:
            flop[method.name] = _flop_seconds(method, site, backbone, kernel)
        except Exception as error:
            log.warning("the cost of %s could not be measured: %s", method.name, error)
    return CostModel(products, base, flop)


def _product_seconds(weights: list[Tensor], tokens: int) -> float:
    """With the base's matrices in turn, so that they are no more in the cache than they will be."""
    x = torch.randn(tokens, weights[0].shape[1], dtype=weights[0].dtype, device=weights[0].device)
    return _median_seconds([partial(functional.linear, x, weight) for weight in weights], x.device)


def _flop_seconds(method: Method[object], site: Site, backbone: Backbone, kernel: Wanted) -> float:
    """Of MANY tokens of several adapters, through the layer's own code."""
    spec = _usual_spec(method, site)
    tables, shared = _tables(method, site, spec, backbone.device)
    rows = MANY // TOKENS_EACH
    runs = [(1 + k, TOKENS_EACH) for k in range(rows)]
    widened = {name: table.expand(rows + 1, *table.shape).contiguous() for name, table in tables.items()}
    layouts = {site.name: method.layout(site, spec)}
    bank = BankSlice(0, MANY, method, {site.name: widened}, layouts, runs, {site.name: shared})
    x = torch.randn(MANY, site.d_in, dtype=backbone.dtype, device=backbone.device)
    y = torch.zeros(MANY, site.d_out, dtype=backbone.dtype, device=backbone.device)
    context = AdapterContext(kernel)
    with context.activate([bank]):
        seconds = _median_seconds([lambda: context.add_delta(site, x, y)], x.device)
    return seconds / (MANY * method.flops(site, spec))


def _usual_spec(method: Method[object], site: Site) -> object:
    """Its defaults, where they fit the site."""
    try:
        return method.spec({}, site)
    except InvalidAdapter:
        return method.examples(site)[-1]


def _tables(method: Method[object], site: Site, spec: object, device: torch.device) -> tuple[Tensors, Tensors]:
    """One fresh adapter's, its own and what a bank shares."""
    generator = Generator().manual_seed(0)
    frozen = method.frozen({site: spec}, generator, {})
    tensors = method.init(site, spec, generator) | method.frozen_of(frozen, site, spec)
    prepared = {name: table.to(device) for name, table in method.prepare(tensors, site, spec).items()}
    shared = {name: prepared.pop(name) for name in sorted(method.shared_tables)}
    return prepared, shared


def _median_seconds(calls: Sequence[Callable[[], object]], device: torch.device) -> float:
    """Of one call, after all were called once."""
    for call in calls:
        call()
    times: list[float] = []
    for k in range(max(RUNS, len(calls))):
        if len(times) > 1 and sum(times) > SECONDS:
            break
        _wait(device)
        start = time.perf_counter()
        calls[k % len(calls)]()
        _wait(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

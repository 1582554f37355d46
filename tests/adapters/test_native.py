"""native.c with MKL's FFTs against the dense definition in float64: grids, padding, mixed rows, both dtypes."""

import ctypes
import gc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from cdvft.kernels import native
from cdvft.kernels.native import NativeAdder, library, missing, plans
from cdvft.methods.base import Tensors
from cdvft.methods.c3a import C3a, C3aSpec
from cdvft.methods.cdvft import Cdvft, CdvftLayout, CdvftSpec
from cdvft.site import Site
from hypothesis import given, settings
from hypothesis import strategies as st

METHOD = Cdvft()
pytestmark = pytest.mark.skipif(library() is None, reason=str(missing()))


def add_native(x: torch.Tensor, y: torch.Tensor, rows: torch.Tensor, tables: Tensors, layout: CdvftLayout) -> None:
    assert NativeAdder(tables, layout)(x, y, rows)


sizes = st.integers(1, 24)
tokens = st.sampled_from([0, 1, 2, 7, 33, 255, 256, 259])
seeds = st.integers(0, 2**31)


class Bank:
    """Three adapters of one site, row 0 zeros."""

    def __init__(self, site: Site, spec: CdvftSpec, generator: torch.Generator) -> None:
        shapes = METHOD.shapes(site, spec)
        own = [{name: torch.randn(s, generator=generator) for name, s in shapes.items()} for _ in range(3)]
        rows = [METHOD.prepare(tensors, site, spec) for tensors in own]
        self.tables = {n: torch.stack([torch.zeros_like(rows[0][n]), *(row[n] for row in rows)]) for n in rows[0]}
        self.layout = METHOD.layout(site, spec)
        self.dense = torch.stack(
            [torch.zeros(site.d_out, site.d_in).double(), *(METHOD.dense(t, site, spec) for t in own)]
        )


@given(st.tuples(sizes, sizes, sizes), st.sampled_from(["rect", "square"]), tokens, seeds, st.sampled_from([1, 2]))
@settings(max_examples=120, deadline=None)
def test_each_token_gets_its_own_adapters_change(shape, grid: str, count: int, seed: int, threads: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    d_in, d_out, p = shape
    site = Site("layer", d_in, d_out)
    bank = Bank(site, CdvftSpec(min(p, 2 * max(d_in, d_out)), 2, 0.7, block_grid=grid), generator)
    x, y = torch.randn(count, d_in, generator=generator), torch.randn(count, d_out, generator=generator)
    rows = torch.randint(0, 4, (count,), generator=generator)
    expected = y.double() + torch.einsum("toi,ti->to", bank.dense[rows], x.double())
    before, parallel = torch.get_num_threads(), native.PARALLEL
    torch.set_num_threads(threads)
    native.PARALLEL = 1
    try:
        add_native(x, y, rows, bank.tables, bank.layout)
    finally:
        torch.set_num_threads(before)
        native.PARALLEL = parallel
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("p", [1, 2, 3, 67, 127, 384, 768, 1009, 1024, 2053])
def test_lengths_of_every_kind(p: int) -> None:
    """Powers of two, products, primes."""
    generator = torch.Generator().manual_seed(p)
    site = Site("layer", p, p)
    bank = Bank(site, CdvftSpec(p), generator)
    x, y = torch.randn(6, p, generator=generator), torch.randn(6, p, generator=generator)
    rows = torch.tensor([1, 2, 3, 3, 2, 1])
    expected = y.double() + torch.einsum("toi,ti->to", bank.dense[rows], x.double())
    add_native(x, y, rows, bank.tables, bank.layout)
    assert float((y.double() - expected).norm() / expected.norm()) < 1e-6


def test_a_tokens_result_does_not_depend_on_its_batch() -> None:
    generator = torch.Generator().manual_seed(9)
    bank = Bank(Site("layer", 96, 64), CdvftSpec(32), generator)
    x, y = torch.randn(700, 96, generator=generator), torch.randn(700, 64, generator=generator)
    rows = torch.randint(0, 4, (700,), generator=generator)
    alone = y.clone()
    add_native(x, y, rows, bank.tables, bank.layout)
    for t in range(0, 700, 35):
        add_native(x[t : t + 1], alone[t : t + 1], rows[t : t + 1], bank.tables, bank.layout)
        assert torch.equal(alone[t], y[t])


def test_plans_are_shared_by_threads() -> None:
    generator = torch.Generator().manual_seed(10)
    bank = Bank(Site("layer", 64, 64), CdvftSpec(64), generator)
    x, rows = torch.randn(200, 64, generator=generator), torch.randint(0, 4, (200,), generator=generator)

    def run(_: int) -> torch.Tensor:
        y = torch.zeros(200, 64)
        add_native(x, y, rows, bank.tables, bank.layout)
        return y

    with ThreadPoolExecutor(8) as pool:
        first, *others = pool.map(run, range(64))
    assert all(torch.equal(first, other) for other in others)


def test_plans_end_with_their_last_use() -> None:
    freed = []
    real = library()
    assert real is not None

    class Counting:
        cdvft_plan = real.cdvft_plan

        def cdvft_free(self, plan: ctypes.c_void_p) -> None:
            freed.append(plan)
            real.cdvft_free(plan)

    made = native.Plans(Counting(), 24, 2, 3)  # type: ignore[arg-type]
    both = [made.forward, made.inverse]
    del made
    gc.collect()
    assert sorted(freed) == sorted(both)


def test_a_library_of_an_older_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    any_other = Path(torch.__file__).parent / "lib" / "libshm.so"
    monkeypatch.setattr(native, "_path", lambda: any_other)
    assert missing.__wrapped__() == "native.c was compiled for another version: install the package again"


def test_a_length_that_mkl_refuses_is_torchs() -> None:
    with pytest.raises(ValueError, match="no real FFT of length 0"):
        native.Plans(library(), 0, 1, 1)  # type: ignore[arg-type]
    assert plans.__wrapped__(0, 1, 1) is None


def test_a_large_site_in_several_threads() -> None:
    generator = torch.Generator().manual_seed(3)
    site = Site("layer", 384, 768)
    bank = Bank(site, CdvftSpec(384, 2, 1.3), generator)
    x, y = torch.randn(600, 384, generator=generator), torch.randn(600, 768, generator=generator)
    rows = torch.randint(0, 4, (600,), generator=generator)
    expected = y.double() + torch.einsum("toi,ti->to", bank.dense[rows], x.double())
    add_native(x, y, rows, bank.tables, bank.layout)
    assert float((y.double() - expected).norm() / expected.norm()) < 1e-6


def test_the_bases_tokens_stay_bit_for_bit() -> None:
    generator = torch.Generator().manual_seed(4)
    bank = Bank(Site("layer", 12, 20), CdvftSpec(4), generator)
    for dtype in (torch.float32, torch.bfloat16):
        x, y = (torch.randn(9, d, generator=generator).to(dtype) for d in (12, 20))
        before = y.clone()
        add_native(x, y, torch.zeros(9, dtype=torch.int64), bank.tables, bank.layout)
        assert torch.equal(y, before)


def test_bfloat16_is_widened_and_rounded_as_torch_does_it() -> None:
    generator = torch.Generator().manual_seed(5)
    bank = Bank(Site("layer", 16, 16), CdvftSpec(16), generator)
    x, y = (torch.randn(50, 16, generator=generator).bfloat16() for _ in range(2))
    rows = torch.randint(0, 4, (50,), generator=generator)
    picked = {name: table[rows] for name, table in bank.tables.items()}
    expected = (y.float() + METHOD.apply(x.float(), picked, bank.layout)).bfloat16()
    add_native(x, y, rows, bank.tables, bank.layout)
    near = torch.finfo(torch.bfloat16).eps * (expected.float().abs() + 1e-3)
    assert bool(((y.float() - expected.float()).abs() <= near).all())
    assert float((y != expected).float().mean()) < 0.02  # sums that lie on an edge between two neighbours


def test_slices_of_wider_tensors_are_taken_as_they_lie() -> None:
    generator = torch.Generator().manual_seed(6)
    bank = Bank(Site("layer", 8, 12), CdvftSpec(4), generator)
    wide_x, wide_y = torch.randn(30, 20, generator=generator), torch.randn(30, 30, generator=generator)
    x, y, rows = wide_x[5:25, 3:11], wide_y[5:25, 7:19], torch.randint(0, 4, (20,), generator=generator)
    expected, whole = y.double() + torch.einsum("toi,ti->to", bank.dense[rows], x.double()), wide_y.clone()
    add_native(x, y, rows, bank.tables, bank.layout)
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)
    whole[5:25, 7:19] = y
    assert torch.equal(wide_y, whole)


def test_nan_reaches_its_own_token_only() -> None:
    generator = torch.Generator().manual_seed(7)
    bank = Bank(Site("layer", 8, 8), CdvftSpec(8), generator)
    bank.tables["diag_in"][2] = torch.nan
    for dtype in (torch.float32, torch.bfloat16):
        x, y = torch.ones(3, 8).to(dtype), torch.ones(3, 8).to(dtype)
        add_native(x, y, torch.tensor([1, 2, 3]), bank.tables, bank.layout)
        assert y.isnan().any(1).tolist() == [False, True, False]


@given(st.tuples(sizes, st.integers(1, 3), st.integers(1, 3)), tokens, seeds)
@settings(max_examples=40, deadline=None)
def test_circulants_without_diagonals(shape, count: int, seed: int) -> None:
    """C3A's tables."""
    b, q_out, q_in = shape
    site, spec, method = Site("layer", q_in * b, q_out * b), C3aSpec(b), C3a()
    generator = torch.Generator().manual_seed(seed)
    own = [{"c3a_kernel": torch.randn(q_out, q_in, b, generator=generator)} for _ in range(2)]
    made = [method.prepare(tensors, site, spec)["spectrum"] for tensors in own]
    tables = {"spectrum": torch.stack([torch.zeros_like(made[0]), *made])}
    dense = torch.stack([torch.zeros(site.d_out, site.d_in).double(), *(method.dense(t, site, spec) for t in own)])
    rows = torch.randint(0, 3, (count,), generator=generator)
    add = method.adder(tables, method.layout(site, spec))
    assert add is not None
    for dtype, near in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        x, y = (torch.randn(count, d, generator=generator).to(dtype) for d in (site.d_in, site.d_out))
        expected, before = y.double() + torch.einsum("toi,ti->to", dense[rows], x.double()), y.clone()
        assert add(x, y, rows)
        torch.testing.assert_close(y.double(), expected, rtol=near, atol=near)
        assert torch.equal(y[rows == 0], before[rows == 0])


def test_what_it_does_not_take_is_left_alone() -> None:
    generator = torch.Generator().manual_seed(8)
    bank = Bank(Site("layer", 8, 12), CdvftSpec(4), generator)
    add = NativeAdder(bank.tables, bank.layout)
    x, y, rows = torch.ones(2, 8), torch.zeros(2, 12), torch.tensor([1, 2])
    wide = torch.ones(8, 2)
    for refused in ((x.double(), y, rows), (x, y.half(), rows), (x, y, rows.int()), (wide.T, y, rows)):
        assert not add(*refused)
    assert not add(x.clone().requires_grad_(), y, rows)
    assert torch.count_nonzero(y) == 0
    with torch.no_grad():
        assert add(x.clone().requires_grad_(), y, rows)

"""The fused kernel under Triton's interpreter against dense float64 products.

test_kernels.py runs this in a process of its own: the interpreter is chosen when triton is first imported.
"""

import numpy as np
import pytest
import torch
from cdvft.kernels import choose, fused, make_adder, plan
from cdvft.methods.cdvft import Cdvft, CdvftSpec
from cdvft.site import Site
from hypothesis import given, settings
from hypothesis import strategies as st
from triton.runtime.interpreter import InterpreterBuilder

METHOD = Cdvft()


class Bank:
    """Three random adapters and row 0; `delta` is the oracle. `lack` is how much of the last blocks is padding."""

    def __init__(self, p: int, q_in: int = 1, q_out: int = 1, lack: tuple[int, int] = (0, 0), seed: int = 0) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.site = Site("layers.0.mlp.up_proj", q_in * p - lack[0], q_out * p - lack[1])
        self.spec = CdvftSpec(p, 2, 1.3, circulant_convention="first_row")
        self.layout = METHOD.layout(self.site, self.spec)
        shapes = METHOD.shapes(self.site, self.spec)
        own = [{n: self.draw(*s) for n, s in shapes.items()} for _ in range(3)]
        made = [METHOD.prepare(tensors, self.site, self.spec) for tensors in own]
        self.tables = {n: torch.stack([torch.zeros_like(t), *(row[n] for row in made)]) for n, t in made[0].items()}
        self.exact = [lambda x: x.new_zeros(self.site.d_out), *(self.oracle(tensors) for tensors in own)]

    def draw(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.random)

    def oracle(self, tensors: dict[str, torch.Tensor]):
        """`x -> dW x` in float64: the dense product; for long blocks FFTs, which test_methods.py measures by it."""
        if self.site.d_in > 1000:
            doubles = METHOD.prepare({n: t.double() for n, t in tensors.items()}, self.site, self.spec)
            return lambda x: METHOD.apply(x, doubles, self.layout)
        dense = METHOD.dense(tensors, self.site, self.spec)
        return lambda x: dense @ x

    def delta(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.exact[row](v.double()) for row, v in zip(rows.tolist(), x, strict=True)])

    def run(self, x: torch.Tensor, rows: torch.Tensor, at: tuple[int, int] | None = None):
        """(y before, y after)."""
        before = self.draw(len(x), self.site.d_out).to(x.dtype)
        after = before.clone()
        if at is None:
            assert make_adder(self.tables, self.layout, "triton")(x, after, rows)
        else:
            fused.launch(x, after, rows, self.tables, plan.fft_plan(self.layout.p), at=at)
        return before, after

    def error(self, rows: list[int], at: tuple[int, int] | None = None) -> float:
        """Of fp32, relative to what is added up; asserts that row 0 changes nothing."""
        x, picked = self.draw(len(rows), self.site.d_in), torch.tensor(rows)
        before, after = self.run(x, picked, at)
        assert torch.equal(after[picked == 0], before[picked == 0])
        exact = self.delta(x, picked)
        applied = METHOD.apply(x, {n: t[picked] for n, t in self.tables.items()}, self.layout)
        size = exact.norm() + before.norm()
        assert float((after - (before + applied)).norm() / size) < 2e-6
        return float((after - (before + exact)).norm() / size)


@pytest.mark.parametrize("p", [1, 2, 3, 4, 5, 8, 12, 16, 24, 32, 35, 48, 96, 128, 384, 768, 1000])
def test_lengths(p: int) -> None:
    assert Bank(p).error([2, 0, 1, 3, 1]) < 1e-6


@pytest.mark.parametrize(("p", "lack"), [(1024, (1, 0)), (2048, (0, 7)), (3072, (0, 0)), (4096, (0, 0))])
def test_long_ones_with_a_middle_row_and_without(p: int, lack: tuple[int, int]) -> None:
    assert Bank(p, lack=lack).error([3, 0, 1], (1, 4)) < 1e-6


@pytest.mark.parametrize("at", [(1, 4), (8, 4)])
@pytest.mark.parametrize("grid", [(1, 3), (3, 1), (2, 2)])
def test_grids_and_tiles_with_padded_sides(at: tuple[int, int], grid: tuple[int, int]) -> None:
    rows = [0, 3, 3, 1, 2, *[0] * 11, 1]
    assert Bank(12, *grid, lack=(5, 7)).error(rows, at) < 1e-6


@pytest.mark.parametrize("q_in", [1, 2])
@pytest.mark.parametrize("n2", [1, 2, 3])
def test_a_middle_row_with_several_tokens(q_in: int, n2: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`fft_plan` takes such a plan for long blocks only; an odd n2 has a middle bin of its own."""
    forced = plan.FftPlan(32, n2)
    assert forced.middle
    monkeypatch.setattr(plan, "fft_plan", lambda p: forced)
    assert Bank(forced.p, q_in, 2).error([1, 0, 3, 2, 2], (2, 4)) < 1e-6


@given(st.integers(1, 40), st.integers(1, 3), st.integers(1, 3), st.data(), st.lists(st.integers(0, 3), max_size=4))
@settings(max_examples=8)
def test_any_shape(p: int, q_in: int, q_out: int, data, rows: list[int]) -> None:
    lack = (data.draw(st.integers(0, p - 1)), data.draw(st.integers(0, p - 1)))
    bank = Bank(p, q_in, q_out, lack, seed=len(rows) + p)
    assert bank.error([*rows, 1], data.draw(st.sampled_from([(1, 4), (2, 4), (4, 4)]))) < 1e-6


@pytest.mark.parametrize(("dtype", "unit"), [(torch.bfloat16, 2**-7), (torch.float16, 2**-11)])
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_short_floats_are_rounded_once(dtype: torch.dtype, unit: float, index: torch.dtype) -> None:
    """To the nearest in fp16; the interpreter cuts bf16 off, where a GPU rounds."""
    bank = Bank(48, 2, 1, (3, 5))
    x, rows = bank.draw(7, bank.site.d_in).to(dtype), torch.tensor([1, 0, 2, 3, 3, 1, 0], dtype=index)
    before, after = bank.run(x, rows)
    exact = before.double() + bank.delta(x, rows)
    assert torch.equal(after[rows == 0], before[rows == 0])
    assert bool(((after.double() - exact).abs() <= unit * exact.abs() * 1.001 + 1e-5).all())


def test_the_base_row_is_not_even_read() -> None:
    bank = Bank(16)
    x, rows = bank.draw(5, 16), torch.tensor([0, 2, 0, 0, 1])
    x[rows == 0] = float("nan")
    before, after = bank.run(x, rows, (2, 4))
    assert torch.equal(after[rows == 0], before[rows == 0])
    assert bool(after.isfinite().all())


def test_views_into_wider_tensors() -> None:
    bank = Bank(24, 1, 2, (0, 3))
    wide_x, wide_y, rows = bank.draw(9, 40), bank.draw(9, 60), torch.tensor([2, 1, 0, 3])
    before = wide_y.clone()
    x, y = wide_x[3:7, 5:29], wide_y[3:7, 2:47]
    assert make_adder(bank.tables, bank.layout, "triton")(x, y, rows)
    exact = before[3:7, 2:47] + bank.delta(x, rows)
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)
    wide_y[3:7, 2:47] = before[3:7, 2:47]
    assert torch.equal(wide_y, before)


def test_three_tf32_products_are_accurate_and_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter multiplies in fp32; here operands lose the bits that a tensor core drops."""
    exact_dot = InterpreterBuilder.create_dot

    def tf32_dot(self, a, b, *others):
        for operand in (a, b):
            operand.data = (operand.data.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
        return exact_dot(self, a, b, *others)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", tf32_dot)
    errors = {p: Bank(p).error([1, 2, 3]) for p in (16, 96, 768, 4096)}
    print("errors with TF32 operands:", errors)
    assert max(errors.values()) < 2e-6
    both = plan.fft_matrices(plan.fft_plan(96), torch.device("cpu"))
    monkeypatch.setattr(fused, "fft_matrices", lambda *_: torch.where(both.abs() > 2**-11, both, 0.0))  # no low planes
    bank = Bank(96)
    x, rows = bank.draw(3, 96), torch.tensor([1, 2, 3])
    before, after = bank.run(x, rows)
    assert float((after - before - bank.delta(x, rows)).norm() / bank.delta(x, rows).norm()) > 2e-5


def test_no_tokens_and_what_is_left_to_torch() -> None:
    bank = Bank(8)
    none = torch.zeros(0, dtype=torch.int64)
    add = make_adder(bank.tables, bank.layout, "triton")
    assert add(torch.zeros(0, 8), torch.zeros(0, 8), none)
    assert choose(bank.tables, bank.layout, "triton").name == "triton"
    assert choose(bank.tables, bank.layout).name != "triton"
    x, y, rows = torch.randn(2, 8), torch.zeros(2, 8), torch.tensor([1, 2])
    for refused in ((x.double(), y, rows), (x, y, rows.float()), (x.T.contiguous().T, y, rows)):
        assert not add(*refused)
    assert not add(x.requires_grad_(), y, rows)
    assert torch.count_nonzero(y) == 0

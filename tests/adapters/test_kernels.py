"""The fused kernel: its FFT plans, who chooses it, and kernel_cases.py in a process of its own."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from cdvft.kernels import choose, machine_choice, make_adder
from cdvft.kernels.choice import Choice, _choose, _triton_problem
from cdvft.kernels.native import library
from cdvft.kernels.plan import MAX_SIDE, FftPlan, fft_matrices, fft_plan
from cdvft.methods.cdvft import Cdvft, CdvftSpec
from cdvft.site import Site

from tests.processes import run_python

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


def bank(spec: CdvftSpec):
    site = Site("layers.0.self_attn.q_proj", 12, 20)
    tensors = {name: torch.ones(2, *shape) for name, shape in Cdvft().shapes(site, spec).items()}
    made = [Cdvft().prepare({n: t[row] for n, t in tensors.items()}, site, spec) for row in range(2)]
    return {name: torch.stack([row[name] for row in made]) for name in made[0]}, Cdvft().layout(site, spec)


@needs_triton
@pytest.mark.timeout(1200)  # half a minute of work, on a machine that may be busy
def test_the_kernel_is_the_dense_product_under_the_interpreter() -> None:
    cases = "tests/adapters/kernel_cases.py"
    shown = run_python("-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", cases, TRITON_INTERPRET="1")
    print(shown)
    assert " passed" in shown
    assert "skipped" not in shown


@needs_triton
@pytest.mark.timeout(1200)  # half a minute of work, on a machine that may be busy
def test_the_kernel_compiles_for_hopper_and_fits_its_shared_memory(tmp_path: Path) -> None:
    """The longest blocks, the widest heads; no GPU is needed for that."""
    environment = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    sizes = ("4096", "--q-in", "1", "--head-dims", "256")
    print(run_python("-m", "tests.bench.kernel_resources", *sizes, **environment))


@pytest.mark.parametrize("p", [1, 2, 7, 12, 24, 49, 96, 384, 768, 1000, 1024, 2048, 3072, 3584, 4096])
def test_a_plan_s_matrices_make_an_fft(p: int) -> None:
    """The formula of plan.py in float64, with the matrices that the kernel reads; every bin k <= p/2 has its place."""
    plan = fft_plan(p)
    assert plan is not None
    assert plan.p == p
    n1, n2, side1, side2, rows = plan.n1, plan.n2, plan.padded1, plan.padded2, plan.rows
    matrices = fft_matrices(plan, torch.device("cpu")).double()
    f, g, w, *middle = matrices.split(
        [4 * side1 * rows, 4 * side2**2, 2 * side2 * rows, *([2 * side2 * plan.half2] if plan.middle else [])]
    )
    f, g = f.view(2, 2, side1, rows).sum(1), g.view(2, 2, side2, side2).sum(1)
    x = torch.randn(p, dtype=torch.float64)
    tile = torch.zeros(side2, side1, dtype=torch.float64)
    tile[:n2, :n1] = x.view(n1, n2).T
    found = torch.complex(*g) @ (
        torch.complex(*w.view(2, side2, rows)) * (tile.to(torch.cdouble) @ torch.complex(*f))
    )  # [k2, k1]
    exact = torch.fft.fft(x)
    k1, k2 = torch.arange(plan.kept), torch.arange(n2)
    k = k1 + n1 * k2[:, None]
    torch.testing.assert_close(found[:n2, : plan.kept], exact[k], rtol=0, atol=1e-6 * p**0.5)
    seen = {min(bin, p - bin) for bin in k.flatten().tolist()}
    if plan.middle:
        half = torch.arange((n2 + 1) // 2)
        row = (tile * (1 - 2 * (torch.arange(side1) % 2))).sum(1).to(torch.cdouble) @ torch.complex(
            *middle[0].view(2, side2, -1)
        )
        torch.testing.assert_close(row[: len(half)], exact[n1 // 2 + n1 * half], rtol=0, atol=1e-6 * p**0.5)
        seen |= set((n1 // 2 + n1 * half).tolist())
    assert seen == set(range(p // 2 + 1))


def test_high_parts_are_tf32_and_low_parts_the_rest() -> None:
    plan = FftPlan(48, 16)
    planes = fft_matrices(plan, torch.device("cpu"))[: 4 * 64 * 32].view(2, 2, 64, 32)
    assert torch.equal(planes[:, 0].view(torch.int32) & 8191, torch.zeros(2, 64, 32, dtype=torch.int32))
    angle = torch.arange(48, dtype=torch.float64)[:, None] * torch.arange(25) * (-2 * torch.pi / 48)
    exact = torch.stack([angle.cos(), angle.sin()])
    assert float((planes.double().sum(1)[:, :48, :25] - exact).abs().max()) < 2**-33


def test_lengths_that_no_plan_has() -> None:
    assert [fft_plan(p) for p in (67, 2 * 67, 4097, 5120, 8192)] == [None] * 5
    assert fft_plan(MAX_SIDE**2) == FftPlan(MAX_SIDE, MAX_SIDE)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (CdvftSpec(4), None),
        (CdvftSpec(4, 3), "3 factors"),
        (CdvftSpec(5, padding="cyclic"), "cyclic"),
        (CdvftSpec(4, padding="cyclic"), None),  # whole blocks were folded
        (CdvftSpec(67), "block length 67"),
    ],
)
def test_what_the_kernel_leaves_to_torch(spec: CdvftSpec, reason: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdvft.kernels.choice.machine_choice", lambda *_: Choice("triton", "it is so"))
    tables, layout = bank(spec)
    blocks = tables["spectrum"].shape[-3]
    chosen = _choose.__wrapped__(torch.device("cpu"), layout, blocks, spec.num_factors, "auto")
    assert chosen.name == ("torch" if reason else "triton")
    assert (reason or "") in chosen.reason


def test_a_cpu_takes_native_or_torch() -> None:
    tables, layout = bank(CdvftSpec(4))
    native = library() is not None
    assert choose(tables, layout).name == ("native" if native else "torch")
    assert choose(tables, layout, "torch") == Choice("torch", "asked for")
    assert choose(tables, layout, "triton").name == "torch"  # no interpreter in this process
    assert make_adder(tables, layout, "torch") is None
    add = make_adder(tables, layout)
    assert (add is not None) is native
    if add is not None:
        y = torch.zeros(1, 20)
        assert add(torch.ones(1, 12), y, torch.tensor([1]))
        assert bool(torch.count_nonzero(y))


@pytest.mark.parametrize("lacking", ["native.c was not compiled: no C compiler at install", "this torch has no MKL"])
def test_without_the_compiled_library_or_mkl_torch_serves(lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdvft.kernels.choice.missing", lambda: lacking)
    for wanted in ("auto", "native"):
        assert machine_choice.__wrapped__(torch.device("cpu"), wanted) == Choice("torch", lacking)
    assert "is for the CPU" in machine_choice.__wrapped__(torch.device("cuda", 0), "native").reason


def test_cards_that_it_was_compiled_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdvft.kernels.choice.find_spec", lambda name: object())
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    for capability, reason in {(9, 0): None, (8, 6): "compute capability 8.6 is untried"}.items():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert _triton_problem(torch.device("cuda", 0), "auto") == reason
        assert _triton_problem(torch.device("cuda", 0), "triton") is None
    monkeypatch.setattr("cdvft.kernels.choice.find_spec", lambda name: None)
    assert _triton_problem(torch.device("cuda", 0), "auto") == "triton is not installed"

"""The fused kernel against torch's expressions on a GPU: error, then median times of every tile; first to run there.

`python -m tests.bench.kernels [--lengths 768 4096] [--tokens 1 64 2048]`. Never run on a GPU yet; `--check-only` also
runs on the CPU with TRITON_INTERPRET=1.
"""

import argparse

import torch
import triton
from cdvft.kernels import choose, fused
from cdvft.kernels.plan import fft_plan
from cdvft.methods.cdvft import Cdvft, CdvftSpec
from cdvft.site import Site

ROWS = 65  # 64 adapters and the base


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[768, 2048, 4096])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 64, 2048])
    parser.add_argument("--check-only", action="store_true")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(torch.cuda.get_device_name() if device == "cuda" else "Triton's interpreter on the CPU")
    for p in arguments.lengths:
        for tokens in arguments.tokens:
            compare(p, tokens, device, arguments.check_only)


def compare(p: int, tokens: int, device: str, check_only: bool) -> None:
    """One block of length p, a random row for each token; the error is of fp32, the times are of bf16."""
    method, site, spec, plan = Cdvft(), Site("site", p, p), CdvftSpec(p), fft_plan(p)
    shapes = method.shapes(site, spec)
    made = [method.prepare({n: torch.randn(s) for n, s in shapes.items()}, site, spec) for _ in range(ROWS - 1)]
    tables = {n: torch.stack([torch.zeros_like(t), *(row[n] for row in made)]).to(device) for n, t in made[0].items()}
    layout, rows = method.layout(site, spec), torch.randint(0, ROWS, (tokens,), device=device)
    rows[0] = 1
    print(f"p {p}, {tokens} tokens: auto takes {choose(tables, layout)}")
    x, y = torch.randn(tokens, p, device=device), torch.zeros(tokens, p, device=device)
    doubles = {n: t[rows].to(torch.complex128 if t.is_complex() else torch.float64) for n, t in tables.items()}
    exact, short = method.apply(x.double(), doubles, layout), (x.bfloat16(), y.bfloat16())

    def by_torch() -> None:
        delta = method.apply(short[0].float(), {n: t[rows] for n, t in tables.items()}, layout)
        short[1].copy_(short[1] + delta.bfloat16())

    print("  torch:", "" if check_only else f"{1e3 * triton.testing.do_bench(by_torch, return_mode='median'):.1f} us")
    for numbers, warps in fused.TILES:
        at = max(1, min(numbers // (plan.padded1 * plan.padded2), 16)), warps
        y.zero_()
        fused.launch(x, y, rows, tables, plan, at=at)
        error = float((y - exact).norm() / exact.norm())

        def by_triton(at: tuple[int, int] = at) -> None:
            fused.launch(*short, rows, tables, plan, at=at)

        took = "" if check_only else f", {1e3 * triton.testing.do_bench(by_triton, return_mode='median'):.1f} us"
        print(f"  {at[0]} tokens, {warps} warps: error {error:.1e}{took}")


if __name__ == "__main__":
    main()

"""What the fused kernel and the attention of recorded decode steps need on a GPU, by their compiler; runs without one:
`python -m tests.bench.kernel_resources [LENGTH ...] [--capability 90]`. Fails where an SM's shared memory is too small.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from cdvft.kernels import fused
from cdvft.kernels.plan import fft_plan
from cdvft_server.engine import spans
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

SHARED = {80: 163 * 1024, 90: 227 * 1024}  # bytes that one program may have
POINTERS = {"x_ptr": "*bf16", "y_ptr": "*bf16", "rows_ptr": "*i64"}


def compiled(p: int, q_in: int, capability: int, numbers: int, warps: int):
    """The kernel for 4,096 tokens of bf16 with q_in x 1 blocks of length p: (tokens of a program, what triton made)."""
    plan = fft_plan(p)
    assert plan is not None, f"no plan for {p}"
    block = max(1, min(numbers // (plan.padded1 * plan.padded2), 16))
    constants = {"BLOCK": block, "OUTPUTS": 1, "SHARED": q_in == 1, "n1": plan.n1, "n2": plan.n2, "N1": plan.padded1}
    constants |= {"N2": plan.padded2, "K1": plan.rows, "MIDDLE": plan.middle, "H2": plan.half2, "q_out": 1}
    if q_in == 1:
        constants["q_in"] = 1
    names = fused.fused_cdvft_kernel.arg_names
    kinds = {name: "*fp32" if name.endswith("_ptr") else "i32" for name in names}
    kinds |= POINTERS | dict.fromkeys(constants, "constexpr")
    aligned = [name for name in names if name.endswith("_ptr") and name != "rows_ptr"]
    aligned += ["d_in", "d_out", "x_stride", "y_stride"]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(fused.fused_cdvft_kernel, kinds, constants, attributes)
    target = GPUTarget("cuda", capability, 32)
    return block, triton.compile(source, target=target, options={"num_warps": warps, "num_stages": 1})


def compiled_attention(head_dim: int, groups: int, dtype: str, capability: int):
    """The kernel that walks over a span: what triton made."""
    kernel = spans.attend_kernel
    constants = {"groups": groups, "GROUPS": spans.padded(groups), "d": head_dim, "D": spans.padded(head_dim)}
    constants |= {"KEYS": spans.KEYS, "PRECISION": spans.precision(dtype == "fp32")}
    names = kernel.arg_names
    kinds = {name: "*fp32" if name.endswith("_ptr") else "i32" for name in names} | {"scale": "fp32"}
    kinds |= dict.fromkeys(("q_ptr", "k_ptr", "v_ptr"), f"*{dtype}")
    kinds |= dict.fromkeys(("start_ptr", "length_ptr"), "*i64") | dict.fromkeys(constants, "constexpr")
    aligned = [name for name in names if name.endswith("_ptr") and kinds[name] != "*i64"] + ["k_token", "v_token"]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    return triton.compile(ASTSource(kernel, kinds, constants, attributes), target=GPUTarget("cuda", capability, 32))


def registers(ptx: str, capability: int) -> str:
    """What ptxas says of registers and spills."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(ptx)
        arch = f"sm_{capability}" + ("a" if capability == 90 else "")
        command = [triton.knobs.nvidia.ptxas.path, "-v", f"-arch={arch}", str(file), "-o", f"{folder}/kernel.cubin"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    used, spilled = re.search(r"Used (\d+) registers", said), re.search(r"(\d+) bytes spill stores", said)
    return f"{used[1] if used else '?'} registers, {spilled[1] if spilled else '?'} bytes spilled"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lengths", type=int, nargs="*", default=[4096, 3072, 2048, 1024, 768, 384])
    parser.add_argument("--q-in", type=int, nargs="+", default=[1, 2], help="input blocks")
    parser.add_argument("--head-dims", type=int, nargs="*", default=[64, 128, 256], help="of the attention")
    parser.add_argument("--groups", type=int, default=4, help="query heads of a key head")
    parser.add_argument("--capability", type=int, choices=SHARED, default=90)
    parser.add_argument("--all-tiles", action="store_true", help="every entry of TILES, not the default alone")
    arguments = parser.parse_args()
    fits = True
    for p in arguments.lengths:
        for q_in in arguments.q_in:
            for numbers, warps in fused.TILES if arguments.all_tiles else fused.TILES[:1]:
                block, kernel = compiled(p, q_in, arguments.capability, numbers, warps)
                shared = kernel.metadata.shared
                fits &= shared <= SHARED[arguments.capability]
                used = registers(kernel.asm["ptx"], arguments.capability)
                print(f"| {p} | {q_in} | {block} | {warps} | {shared / 1024:.0f} KiB | {used} |", flush=True)
    for head_dim in arguments.head_dims:
        for dtype in ("bf16", "fp32"):
            kernel = compiled_attention(head_dim, arguments.groups, dtype, arguments.capability)
            shared = kernel.metadata.shared
            fits &= shared <= SHARED[arguments.capability]
            used = registers(kernel.asm["ptx"], arguments.capability)
            print(f"| {head_dim} | {dtype} | {shared / 1024:.0f} KiB | {used} |", flush=True)
    sys.exit(0 if fits else "too much shared memory")


if __name__ == "__main__":
    main()

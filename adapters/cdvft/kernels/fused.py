"""One Triton kernel for a packed batch of CDVFT tokens, m = 2: diagonal, FFT, spectrum, inverse FFT, diagonal, sum.

`y[t] += diag_out[r] * irfft(sum_j S[r][:, j] * rfft(diag_in[r] * x[t])_j)` with r = rows[t]; tokens of row 0 are not
touched. Only x, y and the tables of the rows in use go through device memory; the FFTs (transforms.py) run on the
tensor cores. It has run under Triton's interpreter and been compiled for sm_90, never run on a GPU: no speed is
known. Importing this module imports triton: ask `cdvft.kernels.choice` first. The oracle is `Cdvft.dense`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cdvft.kernels.plan import FftPlan, fft_matrices, fft_plan
from cdvft.kernels.transforms import forward, forward_middle, inverse, inverse_middle
from cdvft.methods.base import Tensors
from cdvft.methods.cdvft import CdvftLayout

__all__ = ["TILES", "FusedAdder", "launch", "tile"]

TILES = ((4096, 4), (4096, 8), (2048, 4), (2048, 8))  # (padded numbers of x in one program, warps): what to measure
DTYPES = {torch.float32, torch.bfloat16, torch.float16}
ENOUGH = 128  # programs that keep the SMs busy


def tile(plan: FftPlan, tokens: int) -> tuple[int, int]:
    """(tokens of one program, warps): the first of TILES, or one token each where there would be few programs."""
    numbers, warps = TILES[0]
    block = max(1, min(numbers // (plan.padded1 * plan.padded2), 16))
    return (block if tokens >= ENOUGH * block else 1), warps


def launch(
    x: Tensor,
    y: Tensor,
    rows: Tensor,
    tables: Tensors,
    plan: FftPlan,
    *,
    at: tuple[int, int] | None = None,
) -> None:
    """`x [T, d_in]`, `y [T, d_out]` (in place), `rows [T]` (of the tables, none negative), tables as `Cdvft.prepare`
    makes them with rows first; `at` overrides `tile`."""
    spectrum = torch.view_as_real(tables["spectrum"])  # [rows, q_out, q_in, p//2+1, 2]
    q_out, q_in = spectrum.shape[1:3]
    block, warps = at or tile(plan, len(x))
    outputs = q_out if q_in == 1 else 1
    grid = (triton.cdiv(len(x), block), q_out // outputs)
    fused_cdvft_kernel[grid](
        *(x, y, rows, tables["diag_in"], spectrum, tables["diag_out"], fft_matrices(plan, x.device)),
        *(len(x), x.shape[1], y.shape[1], q_in, q_out, x.stride(0), y.stride(0)),
        **{"BLOCK": block, "OUTPUTS": outputs, "SHARED": q_in == 1, "n1": plan.n1, "n2": plan.n2},
        **{"N1": plan.padded1, "N2": plan.padded2, "K1": plan.rows, "MIDDLE": plan.middle, "H2": plan.half2},
        num_warps=warps,
        num_stages=1,  # a pipeline over the blocks would need more shared memory than there is
    )


class FusedAdder:
    """`launch` bound to the tables of one site; x and y in float32, bfloat16 or float16."""

    def __init__(self, tables: Tensors, layout: CdvftLayout) -> None:
        """Raises ValueError for a block length that `fft_plan` does not cut."""
        plan = fft_plan(layout.p)
        if plan is None:
            raise ValueError(f"block length {layout.p} is no product of two short ones; ask `choose` first")
        self.tables, self.plan = tables, plan

    def __call__(self, x: Tensor, y: Tensor, rows: Tensor) -> bool:
        if len(rows) == 0:
            return True
        if not (
            x.dtype in DTYPES
            and y.dtype in DTYPES
            and rows.dtype in {torch.int32, torch.int64}
            and x.stride(1) == y.stride(1) == rows.stride(0) == 1
            and x.device == y.device == rows.device == self.tables["spectrum"].device
            and not (torch.is_grad_enabled() and any(t.requires_grad for t in (x, y, *self.tables.values())))
        ):
            return False
        with torch.cuda.device_of(x):  # Triton launches on the thread's current device
            launch(x, y, rows, self.tables, self.plan)
        return True


@triton.jit(do_not_specialize=["tokens"], do_not_specialize_on_alignment=["rows_ptr"])
def fused_cdvft_kernel(
    x_ptr, y_ptr, rows_ptr, diag_in_ptr, spectrum_ptr, diag_out_ptr, fft_ptr,
    tokens, d_in, d_out, q_in, q_out, x_stride, y_stride,
    BLOCK: tl.constexpr, OUTPUTS: tl.constexpr, SHARED: tl.constexpr, n1: tl.constexpr, n2: tl.constexpr,
    N1: tl.constexpr, N2: tl.constexpr, K1: tl.constexpr, MIDDLE: tl.constexpr, H2: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK tokens and OUTPUTS output blocks: all where q_in is 1 (SHARED: one input spectrum), else 1."""
    p: tl.constexpr = n1 * n2
    bins: tl.constexpr = p // 2 + 1
    start = tl.program_id(0).to(tl.int64) * BLOCK
    token = start + tl.arange(0, BLOCK)
    row = tl.load(rows_ptr + token, mask=token < tokens, other=0).to(tl.int64)  # [BLOCK]
    if tl.max(row, axis=0) == 0:
        return
    k1 = tl.arange(0, BLOCK * K1) % K1  # the columns of the spectra's tiles are (token, k1)
    column = start + tl.arange(0, BLOCK * K1) // K1
    column_row = tl.load(rows_ptr + column, mask=column < tokens, other=0).to(tl.int64)
    k = k1[None, :] + n1 * tl.arange(0, N2)[:, None]  # [N2, BLOCK * K1]
    kept = (column_row[None, :] > 0) & (k1[None, :] <= n1 // 2) & (k < p)
    mid_k = n1 // 2 + n1 * tl.arange(0, H2)[None, :]
    mid_kept = (row[:, None] > 0) & (2 * mid_k <= p)  # [BLOCK, H2]
    size = bins * q_in * q_out
    first = tl.program_id(1) * OUTPUTS
    if SHARED:
        v = _input(x_ptr, diag_in_ptr, token, row, 0, d_in, x_stride, n1, n2, N1, N2)
        x_re, x_im, m_re, m_im = _spectra(v, fft_ptr, BLOCK, N1, N2, K1, MIDDLE, H2)
    for i in range(first, first + OUTPUTS):
        z_re = tl.zeros([N2, BLOCK * K1], dtype=tl.float32)
        z_im = tl.zeros([N2, BLOCK * K1], dtype=tl.float32)
        mid_re = tl.zeros([BLOCK, H2], dtype=tl.float32)
        mid_im = tl.zeros([BLOCK, H2], dtype=tl.float32)
        for j in range(q_in):
            if not SHARED:
                v = _input(x_ptr, diag_in_ptr, token, row, j, d_in, x_stride, n1, n2, N1, N2)
                # the minimum is 0, and keeps the matrices' loads in the loop: outside they would fill the registers
                x_re, x_im, m_re, m_im = _spectra(v, fft_ptr + tl.minimum(j, 0), BLOCK, N1, N2, K1, MIDDLE, H2)
            at = (i * q_in + j) * bins
            s_re, s_im = _bins(spectrum_ptr, column_row[None, :] * size + at, k, kept, p)
            z_re += s_re * x_re - s_im * x_im
            z_im += s_re * x_im + s_im * x_re
            if MIDDLE:
                s_re, s_im = _bins(spectrum_ptr, row[:, None] * size + at, mid_k, mid_kept, p)
                mid_re += s_re * m_re - s_im * m_im
                mid_im += s_re * m_im + s_im * m_re
        # rows k1 = 0 and n1/2 hold both k and p - k, the others stand for two
        weight = tl.where((k1 == 0) | (2 * k1 == n1), 1.0 / p, 2.0 / p)[None, :]
        z = inverse(z_re * weight, z_im * weight, fft_ptr, BLOCK, N1, N2, K1)  # [N2, BLOCK, N1]
        if MIDDLE:
            weight = tl.where(2 * mid_k == p, 1.0 / p, 2.0 / p)
            z += inverse_middle(mid_re * weight, mid_im * weight, fft_ptr, N1, N2, K1, H2)
        _add_output(z, y_ptr, diag_out_ptr, token, row, i, d_out, y_stride, n1, n2, N1, N2)


@triton.jit
def _spectra(
    v, fft_ptr, BLOCK: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, K1: tl.constexpr,
    MIDDLE: tl.constexpr, H2: tl.constexpr,
):  # fmt: skip
    """Real and imaginary `[N2, BLOCK * K1]`, and those of the middle row `[BLOCK, H2]`, zeros where there is none."""
    x_re, x_im = forward(v, fft_ptr, BLOCK, N1, N2, K1)
    if MIDDLE:
        m_re, m_im = forward_middle(v, fft_ptr, N1, N2, K1, H2)
    else:
        m_re = tl.zeros([BLOCK, H2], dtype=tl.float32)
        m_im = tl.zeros([BLOCK, H2], dtype=tl.float32)
    return x_re, x_im, m_re, m_im


@triton.jit
def _places(row, block, width, n1: tl.constexpr, n2: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr):
    """Where element (b, token, a) of a block stands in its vector, `[N2, 1, N1]`, and if it does, `[N2, BLOCK, N1]`."""
    a = tl.arange(0, N1)[None, None, :]
    b = tl.arange(0, N2)[:, None, None]
    place = block * (n1 * n2) + n2 * a + b
    return place, (row > 0)[None, :, None] & (a < n1) & (b < n2) & (place < width)


@triton.jit
def _input(
    x_ptr, diag_ptr, token, row, j, d_in, stride, n1: tl.constexpr, n2: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr
):
    """`diag_in[row] * x` of block j, fp32 `[N2, BLOCK, N1]`; zero beyond d_in."""
    place, kept = _places(row, j, d_in, n1, n2, N1, N2)
    x = tl.load(x_ptr + token[None, :, None] * stride + place, mask=kept, other=0.0).to(tl.float32)
    return x * tl.load(diag_ptr + row[None, :, None] * d_in + place, mask=kept, other=0.0)


@triton.jit
def _add_output(
    z, y_ptr, diag_ptr, token, row, i, d_out, stride,
    n1: tl.constexpr, n2: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr,
):  # fmt: skip
    """`y += diag_out[row] * z` for block i, summed in fp32 and rounded once."""
    place, kept = _places(row, i, d_out, n1, n2, N1, N2)
    z *= tl.load(diag_ptr + row[None, :, None] * d_out + place, mask=kept, other=0.0)
    where = y_ptr + token[None, :, None] * stride + place
    y = tl.load(where, mask=kept, other=0.0).to(tl.float32) + z
    tl.store(where, y.to(y_ptr.dtype.element_ty), mask=kept)


@triton.jit
def _bins(ptr, start, k, kept, p: tl.constexpr):
    """Bins k of full spectra that begin at complex number `start`, from the stored half: S[k] = conj S[p - k]."""
    upper = 2 * k > p
    place = ptr + 2 * (start + tl.where(upper, p - k, k))
    im = tl.load(place + 1, mask=kept, other=0.0)
    return tl.load(place, mask=kept, other=0.0), tl.where(upper, -im, im)

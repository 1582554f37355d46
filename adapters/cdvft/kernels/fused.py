"""One Triton kernel for a packed batch of CDVFT tokens, m = 2: diagonal, FFT, spectrum, inverse FFT, diagonal, sum.

`y[t] += diag_out[r] * irfft(sum_j S[r][:, j] * rfft(diag_in[r] * x[t])_j)` with r = rows[t]; tokens of row 0 are not
touched. The FFTs are products with small DFT matrices (plan.py) on the tensor cores, in three TF32 products each
(`tf32x3`), which keeps fp32's accuracy. Nothing but x, y and the rows' own tables goes through device memory.
This has run under Triton's interpreter only, and been compiled for sm_90: never on a GPU. No speed is known.
Importing this module imports triton: ask `cdvft.kernels.choice` first. The oracle is `Cdvft.dense`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cdvft.kernels.plan import FftPlan, fft_matrices

__all__ = ["launch", "tile"]

TILE = 4096  # numbers of x in one program: 32 KiB of complex numbers in registers and shared memory
PRECISION = tl.constexpr("tf32x3")


def tile(plan: FftPlan, tokens: int) -> tuple[int, int]:
    """(tokens of one program, warps): fewer tokens where there are few, so that more SMs have work."""
    size = plan.padded1 * plan.padded2
    block = max(1, min(TILE // size, 16, triton.next_power_of_2(max(tokens, 1)) // 128))
    return block, 8 if block * size > 1024 else 4


def launch(x: Tensor, y: Tensor, rows: Tensor, tables: dict[str, Tensor], plan: FftPlan, q_in: int) -> None:
    """`x [T, d_in]`, `y [T, d_out]` (in place), `rows [T]`; tables as `Cdvft.prepare` makes them, with rows first."""
    tokens, d_in = x.shape
    spectrum = torch.view_as_real(tables["spectrum"])  # [rows, q_out, q_in, p//2+1, 2]
    q_out = spectrum.shape[1]
    block, warps = tile(plan, tokens)
    outputs = q_out if q_in == 1 else 1  # blocks that one program writes: with one input block its FFT is shared
    grid = (triton.cdiv(tokens, block), q_out // outputs)
    fused_cdvft_kernel[grid](
        *(x, y, rows, tables["diag_in"], spectrum, tables["diag_out"], fft_matrices(plan, x.device)),
        *(tokens, d_in, y.shape[1], q_in, q_out, x.stride(0), y.stride(0)),
        BLOCK=block,
        OUTPUTS=outputs,
        n1=plan.n1,
        n2=plan.n2,
        N1=plan.padded1,
        N2=plan.padded2,
        K1=plan.rows,
        MIDDLE=plan.middle,
        H2=plan.half2,
        num_warps=warps,
    )


@triton.jit
def fused_cdvft_kernel(
    x_ptr, y_ptr, rows_ptr, diag_in_ptr, spectrum_ptr, diag_out_ptr, fft_ptr,
    tokens, d_in, d_out, q_in, q_out, x_stride, y_stride,
    BLOCK: tl.constexpr, OUTPUTS: tl.constexpr, n1: tl.constexpr, n2: tl.constexpr, N1: tl.constexpr,
    N2: tl.constexpr, K1: tl.constexpr, MIDDLE: tl.constexpr, H2: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK tokens and OUTPUTS output blocks (1 where q_in > 1, else all)."""
    token = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(rows_ptr + token, mask=token < tokens, other=0).to(tl.int64)  # [BLOCK]
    if tl.max(row, axis=0) == 0:
        return
    first = tl.program_id(1) * OUTPUTS
    # columns of the spectra's tiles: (token, k1), k1 the faster
    column = tl.arange(0, BLOCK * K1)
    k1 = column % K1
    column_token = tl.program_id(0).to(tl.int64) * BLOCK + column // K1
    column_row = tl.load(rows_ptr + column_token, mask=column_token < tokens, other=0).to(tl.int64)
    k2 = tl.arange(0, N2)
    k = k1[None, :] + n1 * k2[:, None]  # [N2, BLOCK * K1]
    kept = (column_row[None, :] > 0) & (k1[None, :] <= n1 // 2) & (k2[:, None] < n2)
    mid_k = n1 // 2 + n1 * tl.arange(0, H2)  # [H2]
    mid_kept = (row[:, None] > 0) & (2 * mid_k[None, :] <= n1 * n2)  # [BLOCK, H2]
    bins: tl.constexpr = n1 * n2 // 2 + 1
    size = bins * q_in * q_out
    for i in range(first, first + OUTPUTS):
        sum_re = tl.zeros([N2, BLOCK * K1], dtype=tl.float32)
        sum_im = tl.zeros([N2, BLOCK * K1], dtype=tl.float32)
        mid_re = tl.zeros([BLOCK, H2], dtype=tl.float32)
        mid_im = tl.zeros([BLOCK, H2], dtype=tl.float32)
        for j in range(q_in):
            v = _input(x_ptr, diag_in_ptr, token, row, j, d_in, x_stride, n1, n2, N1, N2)
            at = (i * q_in + j) * bins
            s_re, s_im = _bins(spectrum_ptr, column_row[None, :] * size + at, k, kept, n1 * n2)
            x_re, x_im = _fft(v, fft_ptr, BLOCK, N1, N2, K1)
            sum_re += s_re * x_re - s_im * x_im
            sum_im += s_re * x_im + s_im * x_re
            if MIDDLE:
                s_re, s_im = _bins(spectrum_ptr, row[:, None] * size + at, mid_k[None, :], mid_kept, n1 * n2)
                x_re, x_im = _fft_middle(v, fft_ptr, N1, N2, K1, H2)
                mid_re += s_re * x_re - s_im * x_im
                mid_im += s_re * x_im + s_im * x_re
        # k and p - k are both in the rows k1 = 0 and k1 = n1/2; the other rows stand for two
        weight = tl.where((k1 == 0) | (2 * k1 == n1), 1.0 / (n1 * n2), 2.0 / (n1 * n2))[None, :]
        z = _ifft(sum_re * weight, sum_im * weight, fft_ptr, BLOCK, N1, N2, K1)  # [N2, BLOCK, N1]
        if MIDDLE:
            weight = tl.where(2 * mid_k == n1 * n2, 1.0 / (n1 * n2), 2.0 / (n1 * n2))[None, :]
            z += _ifft_middle(mid_re * weight, mid_im * weight, fft_ptr, N1, N2, K1, H2)
        _add_output(z, y_ptr, diag_out_ptr, token, row, i, d_out, y_stride, n1, n2, N1, N2)


@triton.jit
def _places(row, block, width, n1: tl.constexpr, n2: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr):
    """Where element (b, token, a) of a block stands in its vector of `width`, and whether it is one: `[N2, BLOCK, N1]`."""
    a = tl.arange(0, N1)[None, None, :]
    b = tl.arange(0, N2)[:, None, None]
    place = block * (n1 * n2) + n2 * a + b
    return place, (row > 0)[None, :, None] & (a < n1) & (b < n2) & (place < width)


@triton.jit
def _input(
    x_ptr, diag_ptr, token, row, j, d_in, stride, n1: tl.constexpr, n2: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr
):
    """`diag_in[row] * x` of block j, fp32 `[N2, BLOCK, N1]`."""
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
    """Bins k of a full spectrum from the stored half: S[k] = conj S[p - k] beyond p/2."""
    upper = 2 * k > p
    place = ptr + 2 * (start + tl.where(upper, p - k, k))
    im = tl.load(place + 1, mask=kept, other=0.0)
    return tl.load(place, mask=kept, other=0.0), tl.where(upper, -im, im)


@triton.jit
def _matrix(ptr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """A complex matrix of fft_matrices, repeated BLOCK times side by side: real, imaginary `[HEIGHT, BLOCK * WIDTH]`."""
    place = ptr + tl.arange(0, HEIGHT)[:, None] * WIDTH + (tl.arange(0, BLOCK * WIDTH) % WIDTH)[None, :]
    return tl.load(place), tl.load(place + HEIGHT * WIDTH)


@triton.jit
def _dot(a, b, sum):
    return tl.dot(a, b, sum, input_precision=PRECISION)


@triton.jit
def _fft(v, fft_ptr, BLOCK: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, K1: tl.constexpr):
    """`v [N2 (b), BLOCK, N1 (a)]` -> X real, imaginary `[N2 (k2), BLOCK * K1 (token, k1)]`."""
    f_re, f_im = _matrix(fft_ptr, N1, K1, 1)
    w_re, w_im = _matrix(fft_ptr + 2 * N1 * K1, N2, K1, BLOCK)
    g_re, g_im = _matrix(fft_ptr + 2 * (N1 + N2) * K1, N2, N2, 1)
    v = tl.reshape(v, [N2 * BLOCK, N1])
    u_re = tl.reshape(_dot(v, f_re, None), [N2, BLOCK * K1])
    u_im = tl.reshape(_dot(v, f_im, None), [N2, BLOCK * K1])
    t_re = u_re * w_re - u_im * w_im
    t_im = u_re * w_im + u_im * w_re
    x_re = _dot(-g_im, t_im, _dot(g_re, t_re, None))
    return x_re, _dot(g_im, t_re, _dot(g_re, t_im, None))


@triton.jit
def _ifft(z_re, z_im, fft_ptr, BLOCK: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, K1: tl.constexpr):
    """The way back with conjugates, last the real part: `[N2 (k2), BLOCK * K1]` -> `[N2 (b), BLOCK, N1 (a)]`."""
    g_re, g_im = _matrix(fft_ptr + 2 * (N1 + N2) * K1, N2, N2, 1)  # symmetric
    w_re, w_im = _matrix(fft_ptr + 2 * N1 * K1, N2, K1, BLOCK)
    f_re, f_im = _matrix(fft_ptr, N1, K1, 1)
    t_re = _dot(g_im, z_im, _dot(g_re, z_re, None))
    t_im = _dot(-g_im, z_re, _dot(g_re, z_im, None))
    u_re = tl.reshape(t_re * w_re + t_im * w_im, [N2 * BLOCK, K1])
    u_im = tl.reshape(t_im * w_re - t_re * w_im, [N2 * BLOCK, K1])
    v = _dot(u_im, tl.trans(f_im), _dot(u_re, tl.trans(f_re), None))
    return tl.reshape(v, [N2, BLOCK, N1])


@triton.jit
def _fft_middle(v, fft_ptr, N1: tl.constexpr, N2: tl.constexpr, K1: tl.constexpr, H2: tl.constexpr):
    """Row k1 = n1/2, where w(n1)^(a k1) is a sign: `[N2, BLOCK, N1]` -> X real, imaginary `[BLOCK, H2 (k2)]`."""
    m_re, m_im = _matrix(fft_ptr + 2 * ((N1 + N2) * K1 + N2 * N2), N2, H2, 1)
    sign = (1 - 2 * (tl.arange(0, N1) % 2))[None, None, :]
    u = tl.sum(v * sign, axis=2)[:, :, None]  # [N2, BLOCK, 1]
    return tl.sum(u * m_re[:, None, :], axis=0), tl.sum(u * m_im[:, None, :], axis=0)


@triton.jit
def _ifft_middle(z_re, z_im, fft_ptr, N1: tl.constexpr, N2: tl.constexpr, K1: tl.constexpr, H2: tl.constexpr):
    """What that row adds to the output: `[BLOCK, H2]` -> `[N2 (b), BLOCK, N1 (a)]`."""
    m_re, m_im = _matrix(fft_ptr + 2 * ((N1 + N2) * K1 + N2 * N2), N2, H2, 1)
    u = tl.sum(z_re[None, :, :] * m_re[:, None, :] + z_im[None, :, :] * m_im[:, None, :], axis=2)  # [N2, BLOCK]
    sign = (1 - 2 * (tl.arange(0, N1) % 2))[None, None, :]
    return u[:, :, None] * sign

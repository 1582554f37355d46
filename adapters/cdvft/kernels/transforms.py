"""The two FFTs of the fused kernel, as Triton functions over one tile of tokens; what they compute stands in plan.py.

A product of fp32 matrices is three TF32 products, a b = a_high b_high + a_high b_low + a_low b_high. `tl.dot`'s own
"tf32x3" is the same, but splits the DFT matrices in registers each time: they come split, and stay in shared memory.
"""

import triton
import triton.language as tl

__all__ = ["forward", "forward_middle", "inverse", "inverse_middle"]


@triton.jit
def _plane(ptr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """One real matrix, repeated BLOCK times side by side: `[HEIGHT, BLOCK * WIDTH]`."""
    place = tl.arange(0, HEIGHT)[:, None] * WIDTH + (tl.arange(0, BLOCK * WIDTH) % WIDTH)[None, :]
    return tl.load(ptr + place)


@triton.jit
def _two_planes(ptr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    size: tl.constexpr = HEIGHT * WIDTH
    return _plane(ptr, HEIGHT, WIDTH, BLOCK), _plane(ptr + size, HEIGHT, WIDTH, BLOCK)


@triton.jit
def _four_planes(ptr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    re_high, re_low = _two_planes(ptr, HEIGHT, WIDTH, 1)
    im_high, im_low = _two_planes(ptr + 2 * HEIGHT * WIDTH, HEIGHT, WIDTH, 1)
    return re_high, re_low, im_high, im_low


@triton.jit
def _split(v):
    """fp32 -> its upper 11 significant bits, which TF32 has, and the rest."""
    high = (v.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
    return high, v - high


@triton.jit
def _dot(a_high, a_low, b_high, b_low, total):
    """`total + a b`, the small terms first."""
    total = tl.dot(a_low, b_high, total, input_precision="tf32")
    total = tl.dot(a_high, b_low, total, input_precision="tf32")
    return tl.dot(a_high, b_high, total, input_precision="tf32")


@triton.jit
def forward(v, fft_ptr, BLOCK: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, K1: tl.constexpr):
    """`v [N2 (b), BLOCK, N1 (a)]` -> X real, imaginary `[N2 (k2), BLOCK * K1 (token, k1)]`; no transpose between."""
    fr_high, fr_low, fi_high, fi_low = _four_planes(fft_ptr, N1, K1)
    gr_high, gr_low, gi_high, gi_low = _four_planes(fft_ptr + 4 * N1 * K1, N2, N2)
    w_re, w_im = _two_planes(fft_ptr + 4 * (N1 * K1 + N2 * N2), N2, K1, BLOCK)
    v_high, v_low = _split(tl.reshape(v, [N2 * BLOCK, N1]))
    u_re = tl.reshape(_dot(v_high, v_low, fr_high, fr_low, None), [N2, BLOCK * K1])
    u_im = tl.reshape(_dot(v_high, v_low, fi_high, fi_low, None), [N2, BLOCK * K1])
    r_high, r_low = _split(u_re * w_re - u_im * w_im)
    i_high, i_low = _split(u_re * w_im + u_im * w_re)
    x_re = _dot(gr_high, gr_low, r_high, r_low, None) - _dot(gi_high, gi_low, i_high, i_low, None)
    x_im = _dot(gi_high, gi_low, r_high, r_low, _dot(gr_high, gr_low, i_high, i_low, None))
    return x_re, x_im


@triton.jit
def inverse(z_re, z_im, fft_ptr, BLOCK: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, K1: tl.constexpr):
    """The way back with conjugates (f, g symmetric in their indices), last the real part:
    `[N2 (k2), BLOCK * K1]` -> `[N2 (b), BLOCK, N1 (a)]`."""
    gr_high, gr_low, gi_high, gi_low = _four_planes(fft_ptr + 4 * N1 * K1, N2, N2)
    w_re, w_im = _two_planes(fft_ptr + 4 * (N1 * K1 + N2 * N2), N2, K1, BLOCK)
    fr_high, fr_low, fi_high, fi_low = _four_planes(fft_ptr, N1, K1)
    r_high, r_low = _split(z_re)
    i_high, i_low = _split(z_im)
    t_re = _dot(gi_high, gi_low, i_high, i_low, _dot(gr_high, gr_low, r_high, r_low, None))
    t_im = _dot(gr_high, gr_low, i_high, i_low, None) - _dot(gi_high, gi_low, r_high, r_low, None)
    r_high, r_low = _split(tl.reshape(t_re * w_re + t_im * w_im, [N2 * BLOCK, K1]))
    i_high, i_low = _split(tl.reshape(t_im * w_re - t_re * w_im, [N2 * BLOCK, K1]))
    v = _dot(r_high, r_low, tl.trans(fr_high), tl.trans(fr_low), None)
    v = _dot(i_high, i_low, tl.trans(fi_high), tl.trans(fi_low), v)
    return tl.reshape(v, [N2, BLOCK, N1])


@triton.jit
def forward_middle(v, fft_ptr, N1: tl.constexpr, N2: tl.constexpr, K1: tl.constexpr, H2: tl.constexpr):
    """Row k1 = n1/2, where w(n1)^(a k1) is a sign: `[N2, BLOCK, N1]` -> X real, imaginary `[BLOCK, H2 (k2)]`."""
    m_re, m_im = _two_planes(fft_ptr + 4 * (N1 * K1 + N2 * N2) + 2 * N2 * K1, N2, H2, 1)
    sign = (1 - 2 * (tl.arange(0, N1) % 2))[None, None, :]
    u = tl.sum(v * sign, axis=2)[:, :, None]  # [N2, BLOCK, 1]
    return tl.sum(u * m_re[:, None, :], axis=0), tl.sum(u * m_im[:, None, :], axis=0)


@triton.jit
def inverse_middle(z_re, z_im, fft_ptr, N1: tl.constexpr, N2: tl.constexpr, K1: tl.constexpr, H2: tl.constexpr):
    """What that row adds to the output: `[BLOCK, H2]` -> `[N2 (b), BLOCK, N1 (a)]`."""
    m_re, m_im = _two_planes(fft_ptr + 4 * (N1 * K1 + N2 * N2) + 2 * N2 * K1, N2, H2, 1)
    u = tl.sum(z_re[None, :, :] * m_re[:, None, :] + z_im[None, :, :] * m_im[:, None, :], axis=2)  # [N2, BLOCK]
    sign = (1 - 2 * (tl.arange(0, N1) % 2))[None, None, :]
    return u[:, :, None] * sign

"""The gradient of Eq. 11 against autograd through dense matrices; how many transforms it takes."""

import pytest
import torch
from cdvft import fft
from hypothesis import given
from hypothesis import strategies as st


def dense_product(x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """`y[i] = sum_j circ(c[i, j]) x[j]` with explicit matrices: `x [..., q_in, p]`, `c [..., q_out, q_in, p]`."""
    p = c.shape[-1]
    index = (torch.arange(p)[:, None] - torch.arange(p)[None, :]) % p
    return torch.einsum("...ijrs,...js->...ir", c[..., index], x)


def leaf(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


sizes = st.integers(1, 4)


@given(p=st.integers(1, 9), q_out=sizes, q_in=sizes, rows=st.lists(sizes, max_size=3), per_row=st.booleans())
def test_forward_and_backward_equal_dense_autograd(
    p: int, q_out: int, q_in: int, rows: list[int], per_row: bool
) -> None:
    x, c = leaf(*rows, q_in, p, seed=1), leaf(*(rows if per_row else []), q_out, q_in, p, seed=2)
    weights = leaf(*rows, q_out, p, seed=3).detach()
    y = fft.block_circulant(x, fft.circulant_spectrum(c), p)
    (y * weights).sum().backward()
    other_x, other_c = x.detach().clone().requires_grad_(), c.detach().clone().requires_grad_()
    expected = dense_product(other_x, other_c)
    (expected * weights).sum().backward()
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(x.grad, other_x.grad)
    torch.testing.assert_close(c.grad, other_c.grad)


@given(p=st.integers(1, 9), shared=st.booleans())
def test_broadcast_axes_are_summed(p: int, shared: bool) -> None:
    """One input for several adapters, or several inputs for one."""
    rows_x, rows_c = (1, 3) if shared else (3, 1)
    x, c = leaf(rows_x, 2, p, seed=1), leaf(rows_c, 2, 2, p, seed=2)
    fft.block_circulant(x, fft.circulant_spectrum(c), p).square().sum().backward()
    other_x, other_c = x.detach().clone().requires_grad_(), c.detach().clone().requires_grad_()
    dense_product(other_x, other_c).square().sum().backward()
    torch.testing.assert_close(x.grad, other_x.grad)
    torch.testing.assert_close(c.grad, other_c.grad)


def test_without_gradient_it_is_the_same() -> None:
    x, c = leaf(5, 3, 8, seed=1), leaf(2, 3, 8, seed=2)
    trained = fft.block_circulant(x, fft.circulant_spectrum(c), 8)
    with torch.no_grad():
        served = fft.block_circulant(x, fft.circulant_spectrum(c), 8)
    assert torch.equal(served, trained)
    assert not served.requires_grad


def test_backward_transforms_only_the_output_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eq. 11: one rfft of dL/dy; the spectra of x and c are the forward's; one irfft each for dL/dx and dL/dc."""
    x, c = leaf(64, 2, 8, seed=1), leaf(3, 2, 8, seed=2)
    y = fft.block_circulant(x, fft.circulant_spectrum(c), 8)
    calls: list[tuple[str, tuple[int, ...]]] = []
    for name in ("rfft", "irfft"):
        original = getattr(torch.fft, name)

        def counted(value, *args, _name=name, _original=original, **options):
            calls.append((_name, tuple(value.shape)))
            return _original(value, *args, **options)

        monkeypatch.setattr(torch.fft, name, counted)
    y.sum().backward()
    assert calls == [("rfft", (64, 3, 8)), ("irfft", (64, 2, 5)), ("irfft", (3, 2, 5))]


def test_frozen_circulant_or_input_gets_no_gradient() -> None:
    x, c = leaf(4, 1, 6, seed=1), leaf(1, 1, 6, seed=2)
    fft.block_circulant(x.detach(), fft.circulant_spectrum(c), 6).sum().backward()
    assert c.grad is not None
    c_frozen = c.detach()
    fft.block_circulant(x, fft.circulant_spectrum(c_frozen), 6).sum().backward()
    assert x.grad is not None
    assert c_frozen.grad is None


@given(p=st.integers(1, 9))
def test_each_half_has_torchs_own_gradient(p: int) -> None:
    """The spectrum's gradient in torch's convention, so that other operators may stand between the two halves."""
    c, other_c = leaf(2, 3, p, seed=1), leaf(2, 3, p, seed=1)
    mixed = torch.complex(leaf(p // 2 + 1, seed=4).detach(), leaf(p // 2 + 1, seed=5).detach())
    (fft.circulant_spectrum(c) * mixed).real.sum().backward()
    (torch.fft.rfft(other_c) * mixed).real.sum().backward()
    torch.testing.assert_close(c.grad, other_c.grad)
    x, weights = leaf(4, 3, p, seed=2).detach(), leaf(4, 2, p, seed=3).detach()
    spectrum = torch.fft.rfft(c.detach()).requires_grad_()
    plain = torch.fft.rfft(c.detach()).requires_grad_()
    (fft.block_circulant(x, spectrum, p) * weights).sum().backward()
    (torch.fft.irfft((torch.fft.rfft(x).unsqueeze(-3) * plain).sum(-2), n=p) * weights).sum().backward()
    real = [0] if p % 2 else [0, -1]  # irfft ignores the imaginary part of DC and Nyquist: so does its gradient
    expected, found = plain.grad.clone(), spectrum.grad.clone()
    expected.imag[..., real] = found.imag[..., real] = 0.0
    torch.testing.assert_close(found, expected)

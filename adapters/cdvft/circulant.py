"""Circulant matrices written out and turned over, without FFT: for the dense oracles, and for other conventions."""

from typing import Literal

import torch
from torch import Tensor

__all__ = ["Convention", "circulant_rows", "transposed"]

Convention = Literal["first_col", "first_row"]


def transposed(c: Tensor) -> Tensor:
    """First row to first column, and back: `c'[k] = c[(-k) mod p]` along the last axis."""
    return torch.roll(c.flip(-1), 1, dims=-1)


def circulant_rows(c: Tensor, convention: Convention, rows: int) -> Tensor:
    """The first rows of circulant matrices, `[..., p] -> [..., rows, p]`.

    Entry (r, s) is `c[(r - s) mod p]` (first column) or `c[(s - r) mod p]` (first row).
    """
    p = c.shape[-1]
    first_row = c if convention == "first_row" else transposed(c)
    shifted = torch.cat([first_row, first_row], dim=-1).unfold(-1, p, 1)  # [..., p + 1, p]: row t is rolled left by t
    return shifted[..., p - rows + 1 :, :].flip(-2)

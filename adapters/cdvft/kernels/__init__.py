"""Fast paths for serving; `Cdvft.apply` in torch is the fallback."""

import torch
from torch import Tensor

from cdvft.kernels.native import add_native, library
from cdvft.methods.base import Tensors
from cdvft.methods.cdvft import CdvftLayout

__all__ = ["fused_cdvft"]

DTYPES = (torch.float32, torch.bfloat16)


def fused_cdvft(x: Tensor, y: Tensor, rows: Tensor, tables: Tensors, layout: CdvftLayout) -> bool:
    if library() is None or x.device.type != "cpu" or layout.cyclic or tables["diag_out"].shape[-2] != 1:
        return False
    if x.dtype not in DTYPES or y.dtype not in DTYPES or tables["diag_in"].dtype != torch.float32:
        return False
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, y, *tables.values())):
        return False
    add_native(x, y, rows, tables, layout)
    return True

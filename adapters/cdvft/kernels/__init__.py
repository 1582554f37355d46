"""Fast paths for serving, chosen in `choice`. Triton is imported only where it is chosen; torch is the fallback."""

from cdvft.kernels.choice import Choice, Wanted, choose, machine_choice, make_adder

__all__ = ["Choice", "Wanted", "choose", "machine_choice", "make_adder"]

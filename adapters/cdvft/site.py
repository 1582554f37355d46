"""A site: one frozen linear layer of the base that adapters may change."""

from dataclasses import dataclass

__all__ = ["Site"]


@dataclass(frozen=True, order=True)
class Site:
    """`name` is the module path inside the backbone, without the family prefix; the weight is `[d_out, d_in]`."""

    name: str
    d_in: int
    d_out: int

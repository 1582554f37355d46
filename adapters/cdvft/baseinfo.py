"""What reading, writing and serving an adapter needs to know of the base: no model, no transformers."""

from collections.abc import Mapping
from dataclasses import dataclass

from cdvft.family import Family
from cdvft.site import Site

__all__ = ["BaseInfo"]


@dataclass(frozen=True)
class BaseInfo:
    """`digest` is "sha256:<hex>" (see cdvft.identity); `max_length` is the longest input in tokens."""

    name: str
    digest: str
    family: Family
    sites: Mapping[str, Site]
    hidden: int
    max_length: int
    has_pooler: bool

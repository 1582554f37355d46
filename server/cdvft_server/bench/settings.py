"""What a bench is told; the command line's options have the same names. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cdvft.basefolder import family_at, local_folder
from cdvft.errors import CdvftError

from cdvft_server.bench.shapes import SHAPES

__all__ = ["CASES", "POPULARITIES", "BenchError", "Popularity", "Settings", "Task"]

Task = Literal["classify", "generate"]
Popularity = Literal["uniform", "zipf", "identical", "distinct"]
CASES = ("overhead", "residency", "merged", "peers", "http")
POPULARITIES: tuple[Popularity, ...] = ("uniform", "zipf", "identical", "distinct")


class BenchError(CdvftError):
    """An option that this bench cannot do; the message names it and what would be right."""


@dataclass(frozen=True)
class Settings:
    """`base` a folder or Hub id, `shape` a name of SHAPES, neither: the embedded base. `adapters` are resident at most;
    `distinct` of them are in one batch of `requests` (None: as `popularity` draws). `popularity` None: the case's own.
    """

    task: Task
    cases: tuple[str, ...] = CASES
    base: str | None = None
    shape: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    adapters: int = 10_000
    distinct: int | None = None
    method: str = "cdvft"
    popularity: Popularity | None = None
    requests: int = 32
    max_tokens: int = 32
    runs: int = 20
    text: Path | None = None

    def check(self) -> None:
        """What can be told before anything is loaded. Raises BenchError, UnsupportedBase."""
        if self.base is not None and self.shape is not None:
            raise BenchError("--base and --shape exclude each other; give one of them")
        if self.distinct is not None and self.distinct > self.requests:
            raise BenchError(
                f"--distinct {self.distinct} adapters cannot be in one batch of {self.requests} requests; "
                "lower it, or raise --requests"
            )
        if self.distinct is not None and self.distinct > self.adapters:
            raise BenchError(f"--distinct {self.distinct} is more than --adapters {self.adapters}; lower it")
        if self.distinct is not None and self.popularity == "identical":
            raise BenchError("--popularity identical means one adapter in a batch; leave --distinct out")
        self._check_kind()

    def _check_kind(self) -> None:
        """Raises BenchError where an encoder is to generate."""
        if self.task == "classify":
            return
        kind, named = None, ""
        if self.shape is not None:
            kind, named = SHAPES[self.shape].kind, f"--shape {self.shape}"
        elif self.base is not None and (folder := local_folder(self.base)) is not None:
            kind, named = family_at(folder).kind, f"--base {self.base}"
        if kind == "encoder":
            decoders = ", ".join(name for name, shape in SHAPES.items() if shape.kind == "decoder")
            raise BenchError(
                f"{named} is an encoder and generates nothing; use `cdvft bench classify`, or a decoder "
                f"(--shape {decoders})"
            )

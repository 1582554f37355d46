"""What the cases share: settings, texts, the base loaded anew for each, and the rows that they report."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from cdvft.backbone import Backbone, load_backbone

from cdvft_server import demo
from cdvft_server.bench.fleet import Fleet
from cdvft_server.bench.loads import Load, make_loads
from cdvft_server.bench.settings import BenchError, Settings

__all__ = ["Bench", "Row"]

Row = dict[str, Any]


class Bench:
    """`base` is what `load_backbone` takes; `note` tells a person what was left out; `threads` are an engine's."""

    def __init__(self, settings: Settings, base: str, texts: Sequence[str], note: Callable[[str], None]) -> None:
        self.settings, self.base, self.texts, self.note = settings, base, texts, note
        self.threads = torch.get_num_threads()
        self.dtype, self.device, self.name = settings.dtype, settings.device, ""  # as loaded, from the first load on

    def load(self) -> Backbone:
        """A base of its own: an engine changes its layers. Raises CdvftError."""
        backbone = load_backbone(self.base, device=self.settings.device, dtype=self.settings.dtype)
        if self.settings.task == "generate" and backbone.lm_head is None:
            raise BenchError(f"--base {self.base} is an encoder and generates nothing; use `cdvft bench classify`")
        self.dtype, self.device = str(backbone.dtype).removeprefix("torch."), backbone.device.type
        self.name = demo.BASE_NAME if self.base == str(demo.base_path()) else backbone.info.name
        return backbone

    def fleet(self, backbone: Backbone) -> Fleet:
        return Fleet(backbone.info, self.settings.method, self.settings.task)

    def loads(self, backbone: Backbone) -> list[Load]:
        return make_loads(backbone, self.texts, self.settings)

    def row(self, case: str, what: str, **figures: Any) -> Row:
        """The keys that all rows have, None where they say nothing, then the case's own."""
        common = dict.fromkeys(("adapters", "distinct", "popularity", "tokens_per_s", "ratio_to_base"))
        own = {"case": case, "task": self.settings.task, "what": what, "dtype": self.dtype}
        made = {"base": self.name, "method": self.settings.method, "device": self.device, "runs": self.settings.runs}
        return {**own, **common, **made, **figures}

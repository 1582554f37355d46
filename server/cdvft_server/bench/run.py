"""The chosen cases on one base, row by row as they are measured."""

from collections.abc import Callable, Iterator

import torch

from cdvft_server.bench.base import base_of
from cdvft_server.bench.bench import Bench, Row
from cdvft_server.bench.cases import RUNNERS
from cdvft_server.bench.settings import Settings
from cdvft_server.bench.texts import read_texts

__all__ = ["run_bench"]


def run_bench(settings: Settings, note: Callable[[str], None]) -> Iterator[Row]:
    """`note` hears what is left out, and why. Raises CdvftError, StartRefused for options that do not fit."""
    settings.check()
    texts = read_texts(settings.text, settings.task)
    with base_of(settings, texts) as base:
        bench = Bench(settings, base, texts, note)
        torch.set_num_threads(1)  # but in engines' threads, where all that is timed runs: docs/decisions.md
        try:
            for case in settings.cases:
                yield from RUNNERS[case](bench)
        finally:
            torch.set_num_threads(bench.threads)

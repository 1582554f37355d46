"""How long adapters took to come onto the device, by where they came from."""

from collections.abc import Mapping
from typing import Literal

from cdvft_server.engine.histogram import STEPS, Histogram, Spread

__all__ = ["LoadTimes", "Source"]

Source = Literal["host", "store"]


class LoadTimes:
    """For the loop's thread only."""

    def __init__(self) -> None:
        self._times: dict[Source, Histogram] = {"host": Histogram(STEPS), "store": Histogram(STEPS)}

    def observe(self, source: Source, seconds: float) -> None:
        self._times[source].observe(seconds)

    def read(self) -> Mapping[str, Spread]:
        return {source: times.read() for source, times in self._times.items()}

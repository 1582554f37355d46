"""What HTTP, validation, names and text cost on top of the engine: the same rows both ways, on one running server."""

import asyncio
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from cdvft.checkpoint import adapter_files, freeze
from cdvft.files import write_folder
from cdvft_client import Client

from cdvft_server.bench.bench import Bench, Row
from cdvft_server.bench.fleet import Fleet
from cdvft_server.bench.live import Running, live, own_config
from cdvft_server.bench.loads import Load
from cdvft_server.bench.timing import WARM_UP, Lap, Side, in_turn

__all__ = ["http"]

NAME = "adapter-{}"
TIMEOUT = 600.0  # seconds


def http(bench: Bench) -> Iterator[Row]:
    """A batch of `--requests` rows, each naming one of as many adapters (`--distinct`: so many), submitted to the
    engine; by as many HTTP calls at once; and, for a classification, by one call. The client runs in this process, and
    its work is counted as the server's.
    """
    settings = bench.settings
    count = min(settings.distinct or settings.requests, settings.adapters)
    with tempfile.TemporaryDirectory(prefix="cdvft-bench-") as folder:
        backbone = bench.load()
        load, fleet = bench.loads(backbone)[0], bench.fleet(backbone)
        with live(own_config(bench, Path(folder))) as running:
            _upload(running.url, fleet, count, Path(folder))
            asked = Asked(bench, running, load, count)
            asked.calls(WARM_UP)  # which brings the adapters onto the device
            sides: dict[str, Side] = {"engine": asked.engine, "HTTP, a call for each": asked.calls}
            if settings.task == "classify":
                sides["HTTP, one call"] = asked.one_call
            timed = in_turn(sides, settings.runs)
    for name, own in timed.items():
        extra = own.latencies["p50_ms"] - timed["engine"].latencies["p50_ms"]
        yield bench.row(
            "http",
            name,
            adapters=count,
            distinct=count,
            popularity="distinct",
            tokens_per_s=own.tokens_per_s,
            ratio_to_engine=own.ratio_to(timed["engine"]),
            server_ms_per_request=None if name == "engine" else round(extra / settings.requests, 3),
            **own.latencies,
        )


class Asked:
    """The same rows, asked for in different ways; a lap ends with the last answer."""

    def __init__(self, bench: Bench, running: Running, load: Load, count: int) -> None:
        self.running, self.load = running, load
        self.names = [NAME.format(k % count) for k in range(len(load.prompts))]
        texts = [bench.texts[k % len(bench.texts)] for k in range(len(load.prompts))]
        if load.sampling is None:
            self.path = "/v1/classify"
            self.bodies: list[Any] = [
                {"model": name, "input": text, "truncate": True} for name, text in zip(self.names, texts, strict=True)
            ]
        else:
            self.path = "/v1/completions"
            fields = {"max_tokens": load.sampling.max_tokens, "temperature": 0, "ignore_eos": True}
            self.bodies = [
                {"model": name, "prompt": list(ids), **fields}
                for name, ids in zip(self.names, load.prompts, strict=True)
            ]
        self.together = {"model": self.names, "input": texts, "truncate": True}

    def engine(self, _: int) -> Lap:
        return self.running.run(self.load, self.names)

    def calls(self, _: int) -> Lap:
        return self._asked(self.bodies)

    def one_call(self, _: int) -> Lap:
        return self._asked([self.together])

    def _asked(self, bodies: list[Any]) -> Lap:
        """Raises httpx.HTTPStatusError."""
        return asyncio.run(self._ask_all(bodies))

    async def _ask_all(self, bodies: list[Any]) -> Lap:
        async with httpx.AsyncClient(base_url=self.running.url, timeout=TIMEOUT) as client:
            start = time.perf_counter()
            answers = await asyncio.gather(*(client.post(self.path, json=body) for body in bodies))
            seconds = time.perf_counter() - start
        for answer in answers:
            answer.raise_for_status()
        return Lap(self.load.tokens, seconds)


def _upload(url: str, fleet: Fleet, count: int, folder: Path) -> None:
    with Client(url) as client:
        for number in range(count):
            adapter = fleet.adapter(number)
            write_folder(folder / str(number), freeze(adapter_files(adapter, fleet.base), adapter))
            client.upload(folder / str(number), name=NAME.format(number))

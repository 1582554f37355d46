"""A server in a process of its own, and what tests ask of that process."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from cdvft.backbone import Backbone
from cdvft.checkpoint import AdapterFiles, adapter_files

from tests.server.deployment.compose import Process, running, served
from tests.server.http.harness import WAIT
from tests.tiny import random_adapter


class Own:
    """The process, a client of it, and its store's address."""

    def __init__(self, process: Process, url: str, database: str, base: Backbone) -> None:
        self.process, self.url, self.database, self.base = process, url, database, base
        self.client = httpx.Client(base_url=url, timeout=WAIT)

    def files(self, seed: int, task: Any = "lm") -> AdapterFiles:
        return adapter_files(random_adapter(self.base.info, seed, task), self.base.info)

    def upload(self, name: str, files: AdapterFiles) -> httpx.Response:
        parts = {"config": ("c.json", files.config), "weights": ("w.safetensors", files.weights)}
        return self.client.post("/v1/adapters", data={"name": name}, files=parts)

    def complete(self, model: str, prompt: Any = "the cat", **fields: Any) -> httpx.Response:
        body = {"model": model, "prompt": prompt, "temperature": 0, **fields}
        return self.client.post("/v1/completions", json=body)

    def gauge(self, name: str) -> float:
        found = re.search(rf"^{name} (\S+)$", self.client.get("/metrics").text, re.M)
        assert found is not None, name
        return float(found[1])

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.process.process.pid}/fd"))

    def resident(self) -> int:
        """Bytes."""
        pages = Path(f"/proc/{self.process.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def serving(base: Backbone, folder: Path, *options: str) -> Iterator[Own]:
    database = f"sqlite:///{folder}/store.db"
    with running(served(["serve", "--base", str(base.path), "--database", database, *options])) as process:
        own = Own(process, process.find(r"ready on (http://\S+)"), database, base)
        with own.client:
            yield own

"""The server itself, over HTTP on loopback, in a thread of this process."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from cdvft_server.bench.bench import Bench
from cdvft_server.bench.loads import Load
from cdvft_server.bench.settings import BenchError
from cdvft_server.bench.timing import Lap
from cdvft_server.config import ServeConfig
from cdvft_server.service import TENANT, Service
from cdvft_server.serving import Server, make_server

__all__ = ["Running", "live", "own_config"]


class OwnConfig(ServeConfig):
    """What is given, and nothing from variables that are meant for `cdvft serve`."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


class Running:
    """`url` and `service` once it is up."""

    def __init__(self, config: ServeConfig) -> None:
        self.config, self.url = config, ""
        self.server: Server | None = None
        self.failure: BaseException | None = None
        self.up = threading.Event()
        self.thread = threading.Thread(target=self._run, name="cdvft-bench-server")

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # of whatever kind: the thread that waits must hear of it
            self.failure = error
        self.up.set()

    async def _serve(self) -> None:
        self.service = await Service.start(self.config)
        self.server = make_server(self.config, self.service, self._announce, log_level="error")
        await self.server.serve()

    def run(self, load: Load, names: Sequence[str]) -> Lap:
        """The load in the server's own engine, request k with the adapter `names[k]`, which must be resident."""
        parts = self.service._parts
        rows = [parts.store.get(TENANT, name, parts.base.digest) for name in names]
        leases = [parts.pool.acquire(row.key) for row in rows]
        if None in leases:
            raise RuntimeError("an adapter of the bench is not resident")
        return load.run(parts.engine, leases)

    def _announce(self, url: str) -> None:
        self.url = url
        self.up.set()


@contextmanager
def live(config: ServeConfig) -> Iterator[Running]:
    """A server that runs inside the block. Raises what its start raises."""
    running = Running(config)
    running.thread.start()
    running.up.wait()
    try:
        if running.failure is not None:
            raise running.failure
        yield running
    finally:
        if running.server is not None:
            running.server.should_exit = True
        running.thread.join()


def own_config(bench: Bench, folder: Path) -> OwnConfig:
    """Raises BenchError for variables that no server knows."""
    options: dict[str, Any] = {"base": bench.base, "served_name": "bench-base", "port": 0}
    options |= {"database": f"sqlite:///{folder.absolute() / 'server.db'}"}
    options |= {"dtype": bench.settings.dtype, "device": bench.settings.device, "threads": bench.threads}
    try:
        return OwnConfig(**options)
    except ValidationError as error:
        raise BenchError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None

"""The server itself, over HTTP on loopback, in a thread of this process."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from cdvft_server.config import ServeConfig
from cdvft_server.service import Service
from cdvft_server.serving import Server, make_server

__all__ = ["OwnConfig", "live"]


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


class _Running:
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
        service = await Service.start(self.config)
        self.server = make_server(self.config, service, self._announce, log_level="error")
        await self.server.serve()

    def _announce(self, url: str) -> None:
        self.url = url
        self.up.set()


@contextmanager
def live(config: ServeConfig) -> Iterator[str]:
    """The address of a server that runs inside the block. Raises what its start raises."""
    running = _Running(config)
    running.thread.start()
    running.up.wait()
    try:
        if running.failure is not None:
            raise running.failure
        yield running.url
    finally:
        if running.server is not None:
            running.server.should_exit = True
        running.thread.join()

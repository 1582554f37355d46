"""Running the app under uvicorn, so that a stop signal drains the engine while connections are still open."""

import asyncio
import socket
from typing import Any

import uvicorn

from cdvft_server.app import create_app
from cdvft_server.config import ServeConfig

__all__ = ["Server", "make_server"]


class Server(uvicorn.Server):
    """At a stop, requests that run have `drain_seconds`; then each is ended with `finish_reason` cancelled."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        config: Any = self.config.app
        service, seconds = config.state.service, config.state.config.drain_seconds
        drained = asyncio.create_task(service.drain(seconds))
        await super().shutdown(sockets)
        await drained


def make_server(config: ServeConfig, **options: Any) -> Server:
    """`options` go to uvicorn.Config. Raises StartRefused."""
    return Server(
        uvicorn.Config(
            create_app(config),
            host=config.host,
            port=config.port,
            lifespan="on",
            timeout_graceful_shutdown=max(1, round(config.drain_seconds) + 5),
            server_header=False,
            **options,
        )
    )

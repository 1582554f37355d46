"""Running the app under uvicorn, so that a stop signal drains the engine while connections are still open."""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import uvicorn

from cdvft_server.app import create_app, refuse_open_host
from cdvft_server.config import ServeConfig
from cdvft_server.connections import AcceptLog, Connection, allowed_connections
from cdvft_server.process import settled_heap
from cdvft_server.service import Service

__all__ = ["Server", "make_server", "serve"]


class Server(uvicorn.Server):
    """At a stop, requests that run have `drain_seconds`; then each is ended with `finish_reason` cancelled.

    `announce` is called with the server's address once it listens.
    """

    def __init__(self, config: uvicorn.Config, announce: Callable[[str], None] | None = None) -> None:
        super().__init__(config)
        self._announce = announce

    @property
    def url(self) -> str:
        """Once it listens; the port is the one that was found where port 0 was asked for."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(AcceptLog())
        await super().startup(sockets)
        if self._announce is not None and self.started:
            self._announce(self.url)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        app: Any = self.config.app
        drained = asyncio.create_task(app.state.service.drain(app.state.config.drain_seconds))
        await super().shutdown(sockets)
        await drained


def make_server(
    config: ServeConfig, service: Service, announce: Callable[[str], None] | None = None, **options: Any
) -> Server:
    """A server that ends the service when it ends; `options` go to uvicorn.Config."""
    app = create_app(config, service)
    app.state.max_connections = allowed_connections(config.max_connections)
    settings = uvicorn.Config(
        app,
        http=Connection,
        host=config.host,
        port=config.port,
        lifespan="on",
        timeout_graceful_shutdown=round(config.drain_seconds) + 5,
        server_header=False,
        **options,
    )
    return Server(settings, announce)


def serve(config: ServeConfig, announce: Callable[[str], None] | None = None, **options: Any) -> None:
    """Serve until a signal. Raises StartRefused, UnsupportedBase and the store's errors before anything listens."""
    refuse_open_host(config)

    async def run() -> None:
        service = await Service.start(config)
        server = make_server(config, service, announce, **options)
        with settled_heap():
            await server.serve()

    with suppress(KeyboardInterrupt):
        asyncio.run(run())

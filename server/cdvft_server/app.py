"""The ASGI app: routes, middleware and error answers around one service, which lives as long as the app runs."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse

from cdvft_server.accesslog import AccessLog
from cdvft_server.addresses import is_loopback
from cdvft_server.config import ServeConfig
from cdvft_server.errors import StartRefused, install_handlers
from cdvft_server.gate import Gate, LocalOnly
from cdvft_server.metrics import CountResponses, Metrics
from cdvft_server.middleware import Envelope
from cdvft_server.presence import Gone
from cdvft_server.routes import adapters, admin, classify, completions, health, models, usage
from cdvft_server.service import FAULTS, Gauges, Service, is_out_of_memory, keys_required, translate

__all__ = ["create_app", "refuse_open_host"]

VERSION = "0.1.0"


def refuse_open_host(config: ServeConfig) -> None:
    """Raises StartRefused for an address where anybody could use and change this server, and the store's errors."""
    if is_loopback(config.host) or config.allow_unauthenticated or keys_required(config.database):
        return
    raise StartRefused(
        f"--host {config.host} is not loopback and there are no keys: anybody could use and change this server; "
        "make a key (cdvft keys create), listen on 127.0.0.1, or give --allow-unauthenticated"
    )


def create_app(config: ServeConfig, service: Service | None = None) -> FastAPI:
    """The app; its lifespan starts the service, unless one is given, and ends it. Raises StartRefused."""
    refuse_open_host(config)
    app = FastAPI(
        title="CDVFT adapter server",
        version=VERSION,
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.config, app.state.service = config, service
    app.state.metrics = Metrics(lambda: _gauges(app))
    for routes in (health, models, completions, classify, adapters, admin, usage):
        app.include_router(routes.router)
    install_handlers(app)
    for kind in FAULTS:
        app.add_exception_handler(kind, _fault)
    for kind in (MemoryError, RuntimeError):
        app.add_exception_handler(kind, _no_memory)
    app.add_exception_handler(Gone, _gone)
    local = LocalOnly(config.host, config.allowed_hosts)
    app.add_middleware(Gate, local=local, service=lambda: app.state.service)
    app.add_middleware(Envelope)
    app.add_middleware(CountResponses, metrics=app.state.metrics)
    app.add_middleware(AccessLog)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    if app.state.service is None:
        app.state.service = await Service.start(app.state.config)
    try:
        yield
    finally:
        await app.state.service.close()


def _gauges(app: FastAPI) -> Gauges:
    service: Service = app.state.service
    return service.gauges()


async def _fault(request: Request, error: Exception) -> JSONResponse:
    found = translate(error)
    return JSONResponse(found.body, found.status_code, found.headers)


async def _no_memory(request: Request, error: Exception) -> JSONResponse:
    if not is_out_of_memory(error):
        raise error
    return await _fault(request, error)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The framework's document, without its validation answer (422), with the header that every answer has."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for path in document["paths"].values():
            for operation in path.values():
                schema = str(operation["responses"].get("422", {}))
                if "HTTPValidationError" in schema:
                    del operation["responses"]["422"]
                for response in operation["responses"].values():
                    response.setdefault("headers", {})["x-request-id"] = {"schema": {"type": "string"}}
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{}, {"key": []}]  # none, as long as no key is needed
        app.openapi_schema = document
    return app.openapi_schema

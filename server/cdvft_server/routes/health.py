"""`/`, `/health`, `/ready` and `/metrics`."""

from typing import Any

from fastapi import APIRouter, Request, Response

from cdvft_server.routes.common import ServiceOf, errors

__all__ = ["router"]

router = APIRouter(tags=["health"])

TEXT: dict[str, Any] = {"content": {"text/plain": {"schema": {"type": "string"}}}}


@router.get("/", responses=errors())
async def index(request: Request) -> dict[str, str]:
    """Where things are."""
    return {
        "name": request.app.title,
        "version": request.app.version,
        "models": "/v1/models",
        "adapters": "/v1/adapters",
        "usage": "/v1/usage",
        "openapi": "/openapi.json",
        "health": "/health",
        "ready": "/ready",
        "metrics": "/metrics",
    }


@router.get("/health", responses=errors())
async def health() -> dict[str, str]:
    """The process is alive."""
    return {"status": "ok"}


@router.get("/ready", responses=errors(503))
async def ready(service: ServiceOf) -> dict[str, str]:
    """The base is loaded, and the store answers."""
    await service.check_ready()
    return {"status": "ready"}


@router.get("/metrics", response_class=Response, responses={**errors(), 200: TEXT})
async def metrics(request: Request) -> Response:
    """Counters and gauges in Prometheus' text format."""
    content, media_type = request.app.state.metrics.render()
    return Response(content, headers={"content-type": media_type})

"""`/v1/classify`: texts or pairs, each with its own adapter if need be."""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from cdvft_server.answers import Classification
from cdvft_server.bodies import JsonRoute
from cdvft_server.presence import unless_gone
from cdvft_server.routes.common import ANSWERED_BY, CallerTenant, ServiceOf, WantedMode, errors
from cdvft_server.schemas import ClassifyRequest
from cdvft_server.service import STALE, Scored

__all__ = ["router"]

router = APIRouter(route_class=JsonRoute, tags=["classification"])


RESPONSES = {**errors(400, 404, 408, 413, 415, 503), 200: {"headers": ANSWERED_BY}}


@router.post("/v1/classify", response_model=Classification, responses=RESPONSES)
async def classify(
    request: Request, body: ClassifyRequest, service: ServiceOf, tenant: CallerTenant, mode: WantedMode
) -> Response:
    """Label or score each input."""
    answer = await unless_gone(request, service.classifier.classify(tenant, body, mode))
    several = isinstance(body.model, list)
    data = [
        {"index": i, **_row(row, body.top_k), **(_who(row) if several else {})} for i, row in enumerate(answer.rows)
    ]
    tokens = answer.prompt_tokens
    usage = {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
    request.state.usage, request.state.adapters = usage, len(set(body.models)) if several else None
    content = {"object": "list", "model": None if several else body.model, "data": data, "usage": usage}
    if several:
        stale = any(row.target.stale for row in answer.rows)
        return JSONResponse(content, headers=STALE if stale else None)
    return JSONResponse(content, headers=answer.rows[0].target.headers(answer.rows[0].mode))


def _row(row: Scored, top_k: int | None) -> dict[str, Any]:
    if row.labels is None:
        return {"score": row.score}
    scores = [{"label": label, "score": score} for label, score in row.labels[:top_k]]
    return {"label": row.labels[0][0], "score": row.score, "scores": scores}


def _who(row: Scored) -> dict[str, Any]:
    return {"adapter": row.target.name, "digest": row.target.digest, "mode": row.mode}

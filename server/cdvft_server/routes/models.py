"""`/v1/models`: the base and the caller's adapters, as OpenAI lists them."""

from fastapi import APIRouter

from cdvft_server.answers import ModelBody, ModelList
from cdvft_server.routes.common import Reading, ServiceOf, errors

__all__ = ["router"]

router = APIRouter(tags=["models"])


@router.get("/v1/models", responses=errors(503))
async def list_models(service: ServiceOf, caller: Reading) -> ModelList:
    """The base first, then every adapter, newest first."""
    return ModelList(data=await service.catalog.models(caller.tenant))


@router.get("/v1/models/{id:path}", responses=errors(400, 404, 503))
async def describe_model(id: str, service: ServiceOf, caller: Reading) -> ModelBody:
    """What a `model` of a request would be answered by."""
    return service.catalog.model(await service.targets.look_up(caller.tenant, id))

"""What may be said about tenants and keys, and what is told: by admin requests and by the commands alike."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from cdvft_server.answers import KeyBody, TenantBody
from cdvft_server.schemas import Strict

__all__ = [
    "LIMITS",
    "OVERLAP",
    "KeyRequest",
    "RotateRequest",
    "Scope",
    "TenantChange",
    "TenantRequest",
    "key_body",
    "tenant_body",
]

LARGEST = 2**53
OVERLAP = 86_400  # seconds that a key goes on beside the one that replaces it, unless it is said otherwise
Scope = Literal["infer", "upload", "admin"]
Size = Annotated[int | None, Field(ge=0, le=LARGEST)]
Rate = Annotated[int | None, Field(ge=1, le=LARGEST)]
Expires = Annotated[int | str | None, Field(description="Unix seconds, a date, or from now: 30m, 12h, 90d, 4w")]


class _Limits(Strict):
    max_adapters: Size = Field(None, description="Most adapters, by name")
    max_bytes: Size = Field(None, description="Most bytes of stored files")
    requests_per_minute: Rate = Field(None, description="Requests per minute, in each server")
    tokens_per_minute: Rate = Field(None, description="Tokens per minute, prompts and answers, in each server")
    max_concurrent: Rate = Field(None, description="Most requests at a time, in each server")
    weight: float = Field(1.0, ge=0.01, le=100, description="Share of the engine where tenants compete for it")


LIMITS = tuple(name for name in _Limits.model_fields if name != "weight")


class TenantRequest(_Limits):
    name: str

    @property
    def limits(self) -> dict[str, int | None]:
        return self.model_dump(include=set(LIMITS))


class TenantChange(_Limits):
    """A limit that is null is lifted; what is not named stays."""

    @property
    def changes(self) -> dict[str, Any]:
        return self.model_dump(exclude_unset=True)


class KeyRequest(Strict):
    tenant: str
    scopes: list[Scope] = Field(["infer", "upload"], min_length=1, description="What it may be used for")
    expires: Expires = None

    @field_validator("scopes")
    @classmethod
    def _check_scopes(cls, value: list[Scope]) -> list[Scope]:
        if len(set(value)) < len(value):
            raise ValueError("names a scope twice")
        return value


class RotateRequest(Strict):
    overlap: int = Field(OVERLAP, ge=0, le=LARGEST, description="Seconds that the old key goes on")
    expires: Expires = None


def tenant_body(row: Any) -> TenantBody:
    """A TenantRow of the store as it is told."""
    return TenantBody(
        id=row.name,
        name=row.name,
        **vars(row.limits),
        weight=row.weight,
        adapters=row.adapters,
        bytes=row.bytes,
        created_at=row.created_at,
    )


def key_body(row: Any) -> KeyBody:
    """A KeyRow of the store as it is told."""
    return KeyBody(**{**vars(row), "scopes": list(row.scopes)})

"""What responses say, field by field: the OpenAPI document is made from these."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

__all__ = [
    "AdapterBody",
    "AdapterDetails",
    "AdapterList",
    "Chat",
    "ChatChoice",
    "ChatMessage",
    "Classification",
    "Completion",
    "CompletionChoice",
    "Deleted",
    "ErrorBody",
    "KeyBody",
    "KeyList",
    "KeyRotated",
    "KeySecret",
    "LabelScore",
    "ModelBody",
    "ModelList",
    "Row",
    "SelfTest",
    "TenantBody",
    "TenantDeleted",
    "TenantList",
    "Usage",
    "UsageEntry",
    "UsageList",
]

FinishReason = Literal["stop", "length", "cancelled"]
Mode = Literal["base", "fft", "merged"]


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorDetail(Answer):
    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(Answer):
    error: ErrorDetail


class Usage(Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionChoice(Answer):
    index: int
    text: str
    logprobs: None = None
    finish_reason: FinishReason | None


class Completion(Answer):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None


class ChatMessage(Answer):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(Answer):
    index: int
    message: ChatMessage
    logprobs: None = None
    finish_reason: FinishReason


class Chat(Answer):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class LabelScore(Answer):
    label: str
    score: float


class Row(Answer):
    """`label` and `scores` are left out for a regression; the last three are there where `model` was a list."""

    index: int
    label: str | None = None
    score: float
    scores: list[LabelScore] | None = None
    adapter: str | None = None
    digest: str | None = None
    mode: Mode | None = None


class Classification(Answer):
    object: Literal["list"] = "list"
    model: str | None
    data: list[Row]
    usage: Usage


class ModelBody(Answer):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    parent: str | None
    root: str


class ModelList(Answer):
    object: Literal["list"] = "list"
    data: list[ModelBody]


class SelfTest(Answer):
    max_error: float


class AdapterBody(Answer):
    id: str
    object: Literal["adapter"] = "adapter"
    name: str
    version: int
    digest: str
    method: str
    base_model: str
    base_verified: bool
    task: Literal["lm", "classification", "regression"]
    labels: list[str] | None
    num_parameters: int
    head_parameters: int
    bytes: int
    sites: list[str]
    aliases: dict[str, int]
    public: bool
    description: str | None
    created_at: int
    self_test: SelfTest
    ignored_files: list[str]


class AdapterDetails(AdapterBody):
    residency: Literal["device", "host", "store"]
    hits: int
    last_used: int | None
    pinned: bool


class AdapterList(Answer):
    object: Literal["list"] = "list"
    data: list[AdapterDetails]
    has_more: bool
    last_id: str | None


class TenantBody(Answer):
    """A limit that is null is none but the server's; `adapters` and `bytes` are what it has."""

    id: str
    object: Literal["tenant"] = "tenant"
    name: str
    max_adapters: int | None
    max_bytes: int | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    max_concurrent: int | None
    weight: float
    adapters: int
    bytes: int
    created_at: int


class TenantList(Answer):
    object: Literal["list"] = "list"
    data: list[TenantBody]
    has_more: bool
    last_id: str | None


class TenantDeleted(Answer):
    id: str
    object: Literal["tenant.deleted"] = "tenant.deleted"
    deleted: Literal[True] = True
    adapters_deleted: int


class KeyBody(Answer):
    """`prefix` is what the key begins with; the key itself is nowhere."""

    id: str
    object: Literal["key"] = "key"
    tenant: str
    prefix: str
    scopes: list[str]
    created_at: int
    expires_at: int | None
    revoked_at: int | None


class KeySecret(KeyBody):
    key: str


class KeyRotated(KeySecret):
    replaces: KeyBody


class KeyList(Answer):
    object: Literal["list"] = "list"
    data: list[KeyBody]
    has_more: bool
    last_id: str | None


class Deleted(Answer):
    id: str
    object: Literal["adapter.deleted"] = "adapter.deleted"
    deleted: Literal[True] = True
    bytes_freed: int


class UsageEntry(Answer):
    """What one group used; null is what its rows may differ in, and the base's version. Times are unix seconds."""

    id: str
    object: Literal["usage"] = "usage"
    start: int | None
    end: int | None
    tenant: str | None
    adapter: str | None
    version: int | None
    digest: str | None
    requests: int
    failed: int
    cancelled: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    seconds: float


class UsageList(Answer):
    object: Literal["list"] = "list"
    data: list[UsageEntry]
    has_more: bool
    last_id: str | None

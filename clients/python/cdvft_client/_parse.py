"""From response bodies to results. What is missing or of another kind becomes APIResponseError (see Call)."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

import httpx

from ._types import (
    Adapter,
    AdapterUsed,
    Choice,
    Chunk,
    Classification,
    ClassifiedRow,
    Completion,
    Deleted,
    Key,
    LabelScore,
    Model,
    Page,
    Tenant,
    Usage,
    UsageEntry,
)

T = TypeVar("T")
Raw = dict[str, Any]


def body(response: httpx.Response) -> Raw:
    raw = json.loads(response.content)
    if not isinstance(raw, dict):
        raise TypeError(f"a JSON {type(raw).__name__} instead of an object")
    return raw


def adapter_used(headers: httpx.Headers) -> AdapterUsed:
    version = headers.get("x-adapter-version", "")
    return AdapterUsed(
        name=headers.get("x-adapter"),
        version=int(version) if version.isdecimal() else None,
        digest=headers.get("x-adapter-digest"),
        mode=headers.get("x-adapter-mode"),
        request_id=headers.get("x-request-id"),
    )


def completion(response: httpx.Response) -> Completion:
    return _generated(Completion, body(response), adapter_used(response.headers))


def chunk(raw: Raw, adapter: AdapterUsed) -> Chunk:
    return _generated(Chunk, raw, adapter)


_C = TypeVar("_C", Completion, Chunk)


def _generated(kind: type[_C], raw: Raw, adapter: AdapterUsed) -> _C:
    return kind(
        id=raw["id"],
        model=raw["model"],
        created=raw["created"],
        choices=tuple(_choice(choice) for choice in raw["choices"]),
        usage=_usage(raw.get("usage")),
        adapter=adapter,
        raw=raw,
    )


def _choice(raw: Raw) -> Choice:
    if "text" in raw:  # a completion's; a chat's has `message`, its chunk's `delta`
        return Choice(raw["index"], raw["text"], raw.get("finish_reason"))
    said = raw["message"] if "message" in raw else raw["delta"]
    return Choice(raw["index"], said.get("content") or "", raw.get("finish_reason"))


def _usage(raw: Raw | None) -> Usage | None:
    if raw is None:
        return None
    prompt, generated = raw["prompt_tokens"], raw.get("completion_tokens", 0)
    return Usage(prompt, generated, raw.get("total_tokens", prompt + generated))


def classification(response: httpx.Response) -> Classification:
    raw, used = body(response), adapter_used(response.headers)
    rows = tuple(_row(row, used) for row in raw["data"])
    return Classification(raw["model"], rows, _usage(raw.get("usage")), used, raw)


def _row(raw: Raw, used: AdapterUsed) -> ClassifiedRow:
    if "adapter" in raw:
        used = AdapterUsed(raw["adapter"], raw.get("version"), raw["digest"], raw["mode"], used.request_id)
    scores = tuple(LabelScore(entry["label"], entry["score"]) for entry in raw.get("scores") or ())
    return ClassifiedRow(raw["index"], raw.get("label"), raw["score"], scores, used)


def model(response: httpx.Response) -> Model:
    return _model(body(response), None)


def _model(raw: Raw, request_id: str | None) -> Model:
    return Model(
        id=raw["id"],
        created=raw.get("created"),
        owned_by=raw.get("owned_by"),
        parent=raw.get("parent"),
        root=raw.get("root"),
        raw=raw,
    )


def adapter(response: httpx.Response) -> Adapter:
    return _adapter(body(response), response.headers.get("x-request-id"))


def uploaded(response: httpx.Response) -> Adapter:
    created = response.status_code == httpx.codes.CREATED
    return _adapter(body(response), response.headers.get("x-request-id"), created)


def _adapter(raw: Raw, request_id: str | None, created: bool | None = None) -> Adapter:
    labels, ignored, self_test = raw["labels"], raw.get("ignored_files"), raw.get("self_test")
    return Adapter(
        id=raw["id"],
        name=raw["name"],
        version=raw["version"],
        digest=raw["digest"],
        method=raw["method"],
        base_model=raw["base_model"],
        base_verified=raw["base_verified"],
        task=raw["task"],
        labels=None if labels is None else tuple(labels),
        num_parameters=raw["num_parameters"],
        head_parameters=raw["head_parameters"],
        bytes=raw["bytes"],
        sites=tuple(raw["sites"]),
        aliases=dict(raw["aliases"]),
        public=raw["public"],
        created_at=raw["created_at"],
        description=raw.get("description"),
        self_test_error=None if self_test is None else self_test["max_error"],
        ignored_files=None if ignored is None else tuple(ignored),
        residency=raw.get("residency"),
        hits=raw.get("hits"),
        last_used=raw.get("last_used"),
        pinned=raw.get("pinned"),
        created=created,
        request_id=request_id,
        raw=raw,
    )


def deleted(response: httpx.Response) -> Deleted:
    raw = body(response)
    request_id = response.headers.get("x-request-id")
    return Deleted(raw["id"], raw["deleted"], raw["bytes_freed"], request_id, raw)


def tenant(response: httpx.Response) -> Tenant:
    return _tenant(body(response), None)


def tenants(response: httpx.Response) -> Page[Tenant]:
    return _page(response, _tenant)


def _tenant(raw: Raw, request_id: str | None) -> Tenant:
    names = ("max_adapters", "max_bytes", "requests_per_minute", "tokens_per_minute", "max_concurrent")
    limits = {name: raw[name] for name in names}
    told = {name: raw[name] for name in ("id", "weight", "adapters", "bytes", "created_at")}
    return Tenant(**told, **limits, raw=raw)


def key(response: httpx.Response) -> Key:
    return _key(body(response), None)


def keys(response: httpx.Response) -> Page[Key]:
    return _page(response, _key)


def _key(raw: Raw, request_id: str | None) -> Key:
    replaces = raw.get("replaces")
    return Key(
        id=raw["id"],
        tenant=raw["tenant"],
        prefix=raw["prefix"],
        scopes=tuple(raw["scopes"]),
        created_at=raw["created_at"],
        expires_at=raw["expires_at"],
        revoked_at=raw["revoked_at"],
        secret=raw.get("key"),
        replaces=None if replaces is None else _key(replaces, request_id),
        raw=raw,
    )


def models(response: httpx.Response) -> Page[Model]:
    return _page(response, _model)


def adapters(response: httpx.Response) -> Page[Adapter]:
    return _page(response, _adapter)


def usage(response: httpx.Response) -> Page[UsageEntry]:
    return _page(response, _usage_entry)


def _usage_entry(raw: Raw, request_id: str | None) -> UsageEntry:
    names = (name for name in UsageEntry.__dataclass_fields__ if name != "raw")
    return UsageEntry(**{name: raw[name] for name in names}, raw=raw)


def _page(response: httpx.Response, read: Callable[[Raw, str | None], T]) -> Page[T]:
    raw, request_id = body(response), response.headers.get("x-request-id")
    data = tuple(read(item, request_id) for item in raw["data"])
    has_more, last_id = bool(raw.get("has_more")), raw.get("last_id")
    if has_more and not (data and last_id):
        raise ValueError("has_more without data and last_id")
    return Page(data, has_more, last_id)

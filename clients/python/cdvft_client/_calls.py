"""Each API call as data: what to send, and how to read the answer. Nothing here touches the network."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx

from . import _parse as parse
from ._exceptions import APIResponseError
from ._fields import GenerationFields, Inputs, Message, Mode, Prompt, StreamFields, UsageFields, checked, written
from ._types import Adapter, Classification, Completion, Deleted, Model, Page, UsageEntry
from ._upload import Files

T = TypeVar("T")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request and the reader of its answer.

    `repeatable`: sending it again after a connection broke half way cannot do harm or work twice.
    `retry`: False for a probe, which is to say how things are now.
    """

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    params: Mapping[str, str | int] | None = None
    json: Mapping[str, Any] | None = None
    form: Mapping[str, str] | None = None
    files: Files | None = None
    mode: Mode | None = None
    repeatable: bool = True
    retry: bool = True

    def request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        headers = {"x-adapter-mode": self.mode} if self.mode else None
        return http.build_request(
            self.method,
            self.path,
            params=self.params,
            json=self.json,
            data=self.form,
            files=self.files,
            headers=headers,
        )

    def result(self, response: httpx.Response) -> T:
        """Raises APIResponseError where the body is not what the API promises."""
        try:
            return self.read(response)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            kind = response.headers.get("content-type", "no content type")
            raise APIResponseError(
                f"{self.method} {response.url.path} answered {response.status_code} ({kind}) with a body that is"
                f" not this API's: {type(error).__name__}: {error}"
            ) from error


def complete(model: str, prompt: Prompt, fields: GenerationFields) -> Call[Completion]:
    return _generate("/v1/completions", {"model": model, "prompt": prompt}, _known("complete", fields))


def chat(model: str, messages: Sequence[Message], fields: GenerationFields) -> Call[Completion]:
    return _generate("/v1/chat/completions", {"model": model, "messages": messages}, _known("chat", fields))


def complete_stream(model: str, prompt: Prompt, fields: StreamFields) -> Call[Completion]:
    given = _streamed(checked("complete_stream", fields, StreamFields))
    return _generate("/v1/completions", {"model": model, "prompt": prompt}, given)


def chat_stream(model: str, messages: Sequence[Message], fields: StreamFields) -> Call[Completion]:
    given = _streamed(checked("chat_stream", fields, StreamFields))
    return _generate("/v1/chat/completions", {"model": model, "messages": messages}, given)


def _known(call: str, fields: GenerationFields) -> dict[str, Any]:
    return checked(call, fields, GenerationFields)


def _streamed(given: dict[str, Any]) -> dict[str, Any]:
    include_usage = given.pop("include_usage", None)
    options = {} if include_usage is None else {"stream_options": {"include_usage": include_usage}}
    return {**given, "stream": True, **options}


def _generate(path: str, question: dict[str, Any], given: dict[str, Any]) -> Call[Completion]:
    mode = given.pop("mode", None)
    return Call("POST", path, parse.completion, json={**question, **given}, mode=mode, repeatable=False)


def classify(
    model: str | Sequence[str],
    inputs: Inputs,
    *,
    top_k: int | None,
    raw_scores: bool | None,
    truncate: bool | None,
    mode: Mode | None,
) -> Call[Classification]:
    options = {"top_k": top_k, "raw_scores": raw_scores, "truncate": truncate}
    given = {name: value for name, value in options.items() if value is not None}
    return Call(
        "POST", "/v1/classify", parse.classification, json={"model": model, "input": inputs, **given}, mode=mode
    )


def models() -> Call[Page[Model]]:
    return Call("GET", "/v1/models", parse.models)


def model(id: str) -> Call[Model]:
    if any(part in ("", ".", "..") for part in id.split("/")):
        raise ValueError(f"{id!r} is not a model id; expected NAME, NAME@VERSION, TENANT/NAME or the like")
    return Call("GET", f"/v1/models/{quote(id, safe='/:@')}", parse.model)


def upload(
    name: str,
    files: Files,
    *,
    alias: str | None,
    public: bool | None,
    description: str | None,
    labels: Sequence[str] | None,
) -> Call[Adapter]:
    form = {
        "name": name,
        "alias": alias,
        "public": None if public is None else json.dumps(bool(public)),
        "description": description,
        "labels": None if labels is None else json.dumps(list(labels)),
    }
    given = {key: value for key, value in form.items() if value is not None}
    return Call("POST", "/v1/adapters", parse.uploaded, form=given, files=files)


def adapters(limit: int, after: str | None) -> Call[Page[Adapter]]:
    params: dict[str, str | int] = {"limit": limit}
    return Call("GET", "/v1/adapters", parse.adapters, params=params if after is None else {**params, "after": after})


def adapter(name: str) -> Call[Adapter]:
    return Call("GET", _adapter_path(name), parse.adapter)


def versions(name: str, limit: int) -> Call[Page[Adapter]]:
    return Call("GET", f"{_adapter_path(name)}/versions", parse.adapters, params={"limit": limit})


def next_page(call: Call[Page[T]], page: Page[T]) -> Call[Page[T]] | None:
    if not page.has_more or page.last_id is None:
        return None
    return replace(call, params={**(call.params or {}), "after": page.last_id})


def download(name: str, version: int | None) -> Call[bytes]:
    path = f"{_adapter_path(name)}/download"
    return Call("GET", path, lambda response: response.content, params=_version(version))


def set_alias(name: str, alias: str, version: int) -> Call[Adapter]:
    return Call("PUT", _alias_path(name, alias), parse.adapter, json={"version": version})


def delete_alias(name: str, alias: str) -> Call[Adapter]:
    return Call("DELETE", _alias_path(name, alias), parse.adapter, repeatable=False)


def set_pinned(name: str, pinned: bool) -> Call[Adapter]:
    return Call("PUT", _adapter_path(name), parse.adapter, json={"pinned": pinned})


def delete(name: str, version: int | None) -> Call[Deleted]:
    return Call("DELETE", _adapter_path(name), parse.deleted, params=_version(version), repeatable=False)


def usage(fields: UsageFields, limit: int) -> Call[Page[UsageEntry]]:
    return Call("GET", "/v1/usage", parse.usage, params={**_usage_params("usage", fields), "limit": limit})


def usage_csv(fields: UsageFields) -> Call[bytes]:
    params = {**_usage_params("usage_csv", fields), "format": "csv"}
    return Call("GET", "/v1/usage", lambda response: response.content, params=params)


def _usage_params(call: str, fields: UsageFields) -> dict[str, str | int]:
    return {name: written(value) for name, value in checked(call, fields, UsageFields).items()}


def health() -> Call[bool]:
    return Call("GET", "/health", lambda response: True, retry=False)


def ready() -> Call[bool]:
    return Call("GET", "/ready", lambda response: True, retry=False)


def _version(version: int | None) -> dict[str, str | int] | None:
    return None if version is None else {"version": version}


def _adapter_path(name: str) -> str:
    return f"/v1/adapters/{path_name(name, 'an adapter name')}"


def _alias_path(name: str, alias: str) -> str:
    return f"{_adapter_path(name)}/aliases/{path_name(alias, 'an alias')}"


def path_name(value: str, what: str) -> str:
    """`value` if it may stand in a path: one like `..` would make the path another's."""
    if not NAME.fullmatch(value):
        raise ValueError(f"{value!r} is not {what}: 1 to 96 of A-Z a-z 0-9 . _ -, the first a letter or digit")
    return value

"""The synchronous client. What is sent and how answers are read is in `_calls`; this file only does it."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx

from . import _admin_calls as admin
from . import _calls as calls
from . import _config as config_
from ._calls import Call
from ._errors import connection_error, status_error
from ._exceptions import CDVFTError, ServiceUnavailableError
from ._fields import GenerationFields, Inputs, Message, Mode, Prompt, StreamFields, TenantFields, UsageFields
from ._retry import Retries
from ._stream import Stream
from ._types import Adapter, Classification, Completion, Deleted, Key, Model, Page, Tenant, UsageEntry
from ._upload import read_upload, write_whole

T = TypeVar("T")
PathLike = str | os.PathLike[str]


class Client:
    """Calls a CDVFT adapter server. Safe to share between threads; close it, or use it in `with`.

    Every call raises APIStatusError (a subclass for each status), APIConnectionError or APITimeoutError;
    all are CDVFTError. 429 and 503 are tried again after the server's Retry-After, a connection that
    could not be made too, and one that broke where repeating is harmless; never a timeout.

    Args:
        base_url: the server; default CDVFT_SERVER, else http://127.0.0.1:8000.
        api_key: sent as bearer token; default CDVFT_API_KEY, else none.
        timeout: seconds without a byte from the server, or an httpx.Timeout, or None for ever;
            default 600, and 5 for connecting.
        max_retries: attempts after the first.
        transport: what carries the requests instead of httpx's own, such as httpx.HTTPTransport(verify=...).
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float | httpx.Timeout | None = config_.DEFAULT_TIMEOUT,
        max_retries: int = config_.DEFAULT_RETRIES,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._max_retries = config_.retries(max_retries)
        self._http = httpx.Client(**config_.settings(base_url, api_key, timeout), transport=transport)

    @property
    def base_url(self) -> str:
        """The server, as messages name it."""
        return config_.shown(self._http.base_url)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes all connections; streams that still run end with an error."""
        self._http.close()

    def complete(self, model: str, prompt: Prompt, **fields: Unpack[GenerationFields]) -> Completion:
        """Continues `prompt`: a string, strings, token ids, or lists of ids. Fields: GenerationFields."""
        return self._run(calls.complete(model, prompt, fields))

    def complete_stream(self, model: str, prompt: Prompt, **fields: Unpack[StreamFields]) -> Stream:
        """The same, piece by piece. Fields: StreamFields."""
        return self._stream(calls.complete_stream(model, prompt, fields))

    def chat(self, model: str, messages: Sequence[Message], **fields: Unpack[GenerationFields]) -> Completion:
        """The next message after `messages`, each `{"role": ..., "content": ...}`. Fields: GenerationFields."""
        return self._run(calls.chat(model, messages, fields))

    def chat_stream(self, model: str, messages: Sequence[Message], **fields: Unpack[StreamFields]) -> Stream:
        """The same, piece by piece. Fields: StreamFields."""
        return self._stream(calls.chat_stream(model, messages, fields))

    def classify(
        self,
        model: str | Sequence[str],
        input: Inputs,
        *,
        top_k: int | None = None,
        raw_scores: bool | None = None,
        truncate: bool | None = None,
        mode: Mode | None = None,
    ) -> Classification:
        """Labels or scores `input`: one text, several, or (first, second) pairs.

        Args:
            model: one adapter for all inputs, or a list of as many adapters as inputs.
            top_k: how many labels each row's `scores` has; default all.
            raw_scores: logits instead of probabilities.
            truncate: cut an input longer than the adapter's `max_length` instead of refusing it.
            mode: how to run the adapter.
        """
        call = calls.classify(model, input, top_k=top_k, raw_scores=raw_scores, truncate=truncate, mode=mode)
        return self._run(call)

    def models(self) -> Iterator[Model]:
        """The base and the caller's adapters."""
        return self._items(calls.models())

    def model(self, id: str) -> Model:
        """One model by any name that requests may use: `NAME`, `NAME@ALIAS`, `NAME@2`, `NAME@sha256:...`."""
        return self._run(calls.model(id))

    def upload(
        self,
        path: PathLike | None = None,
        *,
        name: str | None = None,
        config: Mapping[str, Any] | PathLike | bytes | None = None,
        weights: PathLike | bytes | None = None,
        archive: PathLike | bytes | None = None,
        alias: str | None = None,
        public: bool | None = None,
        description: str | None = None,
        labels: Sequence[str] | None = None,
    ) -> Adapter:
        """Uploads an adapter; it can be used as soon as this returns.

        Content that the name already has makes no new version: the answer then has `created` False.

        Args:
            path: a PEFT folder (chat_template.jinja and frozen.safetensors in it go along), or a zip or tar.gz file.
            name: default the folder's own name; needed for every other form.
            config: adapter_config.json as a mapping, a path, or its bytes; with `weights`.
            weights: adapter_model.safetensors as a path or its bytes.
            archive: a zip or tar.gz as a path or its bytes.
            alias: a pointer to move to this version besides `latest`.
            public: let other tenants use it.
            labels: in the head's order, where the config has none.

        Raises:
            ValueError: not exactly one form, or no name.
            FileNotFoundError: nothing there, or a folder without adapter_config.json or adapter_model.safetensors.
        """
        known_as, files = read_upload(path, name, config, weights, archive)
        call = calls.upload(known_as, files, alias=alias, public=public, description=description, labels=labels)
        return self._run(call)

    def adapters(self, *, limit: int = 100, after: str | None = None) -> Iterator[Adapter]:
        """All the caller's adapters, newest first, asked for in pages of `limit` (at most 100).

        `after`: begin behind the adapter of this name.
        """
        return self._items(calls.adapters(limit, after))

    def adapter(self, name: str) -> Adapter:
        """Describes an adapter's latest version."""
        return self._run(calls.adapter(name))

    def versions(self, name: str, *, limit: int = 100) -> Iterator[Adapter]:
        """All versions of an adapter, newest first, asked for in pages of `limit` (at most 100)."""
        return self._items(calls.versions(name, limit))

    def download(self, name: str, version: int | None = None, *, to: PathLike | None = None) -> bytes:
        """A zip of the files as they were uploaded, the latest version's by default; also written to `to`."""
        content = self._run(calls.download(name, version))
        if to is not None:
            write_whole(to, content)
        return content

    def set_alias(self, name: str, alias: str, version: int) -> Adapter:
        """Points `NAME@ALIAS` at a version: promotes it, or rolls back. `latest` can be moved too."""
        return self._run(calls.set_alias(name, alias, version))

    def delete_alias(self, name: str, alias: str) -> Adapter:
        """Removes the pointer `NAME@ALIAS`, not the version."""
        return self._run(calls.delete_alias(name, alias))

    def pin(self, name: str) -> Adapter:
        """Keeps what the adapter's `latest` names on the device, now and after a restart. ConflictError: no room."""
        return self._run(calls.set_pinned(name, True))

    def unpin(self, name: str) -> Adapter:
        """Lets the adapter leave the device when others need the room."""
        return self._run(calls.set_pinned(name, False))

    def delete(self, name: str, version: int | None = None) -> Deleted:
        """Deletes one version, or the whole name with its aliases. Waits for requests in flight (30 s at most)."""
        return self._run(calls.delete(name, version))

    def tenants(self, *, limit: int = 100) -> Iterator[Tenant]:
        """All tenants, newest first, asked for in pages. This and what follows needs a key with the scope `admin`."""
        return self._items(admin.tenants(limit))

    def tenant(self, name: str) -> Tenant:
        """A tenant's limits, and what it has."""
        return self._run(admin.tenant(name))

    def create_tenant(self, name: str, **limits: Unpack[TenantFields]) -> Tenant:
        """Makes a tenant. Limits: TenantFields. ConflictError where it is there."""
        return self._run(admin.create_tenant(name, limits))

    def set_tenant(self, name: str, **limits: Unpack[TenantFields]) -> Tenant:
        """Changes the limits that are named; None lifts one."""
        return self._run(admin.set_tenant(name, limits))

    def delete_tenant(self, name: str, *, with_adapters: bool = False) -> int:
        """Removes a tenant and its keys; the number of adapters that went along. ConflictError: it has some."""
        return self._run(admin.delete_tenant(name, with_adapters))

    def keys(self, *, tenant: str | None = None, limit: int = 100) -> Iterator[Key]:
        """All keys, or a tenant's, newest first, without their secrets, asked for in pages."""
        return self._items(admin.keys(limit, tenant))

    def key(self, id: str) -> Key:
        """Whose a key is, what it may, until when."""
        return self._run(admin.key(id))

    def create_key(
        self, tenant: str, scopes: Sequence[str] = ("infer", "upload"), *, expires: str | int | None = None
    ) -> Key:
        """Makes a key; its `secret` is told this once. `expires`: `90d`, a date, or Unix seconds; default never."""
        return self._run(admin.create_key(tenant, scopes, expires))

    def rotate_key(self, id: str, *, overlap: int | None = None, expires: str | int | None = None) -> Key:
        """Makes a key that takes another's place; the old one goes on for `overlap` seconds, a day by default."""
        return self._run(admin.rotate_key(id, overlap, expires))

    def revoke_key(self, id: str) -> Key:
        """Lets nobody in by this key any more."""
        return self._run(admin.revoke_key(id))

    def usage(self, *, limit: int = 100, **fields: Unpack[UsageFields]) -> Iterator[UsageEntry]:
        """What the caller used, newest first, asked for in pages of `limit` (at most 100). Fields: UsageFields."""
        return self._items(calls.usage(fields, limit))

    def usage_csv(self, *, to: PathLike | None = None, **fields: Unpack[UsageFields]) -> bytes:
        """The same as CSV, all of it; also written to `to`. Fields: UsageFields."""
        content = self._run(calls.usage_csv(fields))
        if to is not None:
            write_whole(to, content)
        return content

    def health(self) -> bool:
        """True if the server lives; it raises otherwise, without retrying."""
        return self._run(calls.health())

    def ready(self) -> bool:
        """Whether the base is loaded and the store answers. Raises if the server cannot be reached; no retries."""
        try:
            return self._run(calls.ready())
        except ServiceUnavailableError:
            return False

    def _run(self, call: Call[T]) -> T:
        return call.result(self._send(call))

    def _items(self, call: Call[Page[T]]) -> Iterator[T]:
        following: Call[Page[T]] | None = call
        while following is not None:
            page = self._run(following)
            yield from page.data
            following = calls.next_page(following, page)

    def _stream(self, call: Call[Completion]) -> Stream:
        return Stream(self._send(call, stream=True), self.base_url)

    def _send(self, call: Call[Any], *, stream: bool = False) -> httpx.Response:
        retries = Retries(call, self._max_retries)
        while True:
            error: CDVFTError
            try:
                response = self._http.send(call.request(self._http), stream=stream)
                if response.is_success:
                    return response
                response.read()
                error = status_error(response)
            except httpx.RequestError as caught:
                error = connection_error(caught, self.base_url)
            time.sleep(retries.wait(error))

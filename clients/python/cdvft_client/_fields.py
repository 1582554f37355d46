"""The keyword arguments of the calls that have many, in one place for both clients."""

import difflib
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, TypedDict

Mode = Literal["fft", "merged", "auto"]
Prompt = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
Message = Mapping[str, Any]
Moment = int | str | datetime
Inputs = str | Sequence[str | tuple[str, str] | list[str]]


class GenerationFields(TypedDict, total=False):
    """Keyword arguments of `complete` and `chat`; one left out or None takes the server's default.

    max_tokens, max_completion_tokens: at least 1; default 16 for `complete`, the rest of the context for `chat`.
    temperature: 0 (greedy) to 100, default 1. top_p: above 0 to 1, default 1. top_k: 0 (off, default) or more.
    n: sequences per prompt, 1 to 16. seed: 64-bit; sequence i of a prompt is seeded with seed + i.
    stop: up to 4 strings that end a sequence. stop_token_ids: token ids that do. ignore_eos: generate on.
    user, metadata: accepted and unused. mode: how to run the adapter (header x-adapter-mode).
    """

    max_tokens: int | None
    max_completion_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    n: int | None
    seed: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool | None
    user: str | None
    metadata: Mapping[str, str] | None
    mode: Mode | None


class StreamFields(GenerationFields, total=False):
    """Those of `complete_stream` and `chat_stream`: `include_usage` adds a last chunk that counts the tokens."""

    include_usage: bool | None


class TenantFields(TypedDict, total=False):
    """Keyword arguments of `create_tenant` and `set_tenant`; None is no limit but the server's.

    max_adapters: names. max_bytes: of stored files. requests_per_minute, tokens_per_minute, max_concurrent: in each
    server on the store. weight: share of the engine where tenants compete for it, 0.01 to 100; 1 at first, never None.
    """

    max_adapters: int | None
    max_bytes: int | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    max_concurrent: int | None
    weight: float


class UsageFields(TypedDict, total=False):
    """Keyword arguments of `usage` and `usage_csv`.

    start, end: unix seconds, a datetime (UTC where it names no zone), or ISO 8601. group_by: some of hour, day, adapter
    (default), version, tenant. adapter: that one only. tenant: another tenant, or "*" for all (scope admin).
    """

    start: Moment | None
    end: Moment | None
    group_by: str | Sequence[str] | None
    adapter: str | None
    tenant: str | None


HINTS = {"stream": "; call complete_stream() or chat_stream()", "stream_options": "; give include_usage="}


def written(value: Moment | Sequence[str]) -> str | int:
    """As a query has it."""
    if isinstance(value, datetime):
        return value.isoformat()
    return value if isinstance(value, int | str) else ",".join(value)


def checked(call: str, fields: Mapping[str, Any], known: type) -> dict[str, Any]:
    """The fields that are not None. Raises TypeError for one that is not in the TypedDict `known`."""
    check_known(call, fields, known)
    return {name: value for name, value in fields.items() if value is not None}


def check_known(call: str, fields: Mapping[str, Any], known: type) -> None:
    """Raises TypeError for a field that is not in the TypedDict `known`."""
    names = known.__annotations__
    for name in fields:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = HINTS.get(name) or (f"; did you mean {close[0]!r}?" if close else "")
            raise TypeError(f"{call}() got an unexpected keyword argument {name!r}{hint}")

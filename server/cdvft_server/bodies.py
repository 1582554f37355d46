"""Reading request bodies: JSON without the laxness of the standard parser, and never more bytes than a limit."""

import asyncio
import json
import math
import re
from collections.abc import AsyncGenerator, Callable, Coroutine
from email.message import Message
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from cdvft_server.config import ServeConfig
from cdvft_server.errors import ApiError, invalid, invalid_body
from cdvft_server.presence import Gone, unless_gone

__all__ = ["JsonRoute", "content_type", "limited", "parse_json"]

_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_NODE = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|([\[{:])', re.DOTALL)
_LARGE = 1 << 16  # bytes: a millisecond or two on the loop
SLOWEST = 1024  # bytes a second that a body must come with, beside the pause that it may make


def parse_json(data: bytes, most_nodes: int | None = None) -> Any:
    """A JSON value from UTF-8 bytes. Raises ApiError for anything else, NaN and duplicate keys included.

    More than `most_nodes` lists, objects and keys are too large: they cost far more than their bytes, and the parser
    lets no other thread run.
    """
    if most_nodes is not None and _has_more_nodes(data, most_nodes):
        raise ApiError(
            "too_large", f"the body has more than {most_nodes} lists, objects and keys (--max-json-nodes of the server)"
        )
    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite)
        if _ESCAPED_SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise invalid(f"the body is not UTF-8 (byte {error.start})") from None
    except UnicodeEncodeError:
        raise invalid("the body has half a surrogate pair in a string; write whole characters") from None
    except RecursionError:
        raise invalid("the body is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise invalid(f"the body is not valid JSON: {error}") from None
    except ValueError as error:
        message = "a number has too many digits" if "digits" in str(error) else str(error)
        raise invalid(f"the body is not valid JSON: {message}") from None
    return value


def content_type(request: Request) -> str:
    """The media type without parameters, in lower case; "" if there is none."""
    message = Message()
    message["content-type"] = request.headers.get("content-type", "")
    return message.get_content_type() if request.headers.get("content-type") else ""


async def limited(request: Request, limit: int, option: str) -> AsyncGenerator[bytes, None]:
    """The body, piece by piece. Raises ApiError: 413 as soon as it is known to exceed `limit` bytes, 408 where no more
    of it comes, or too slowly; Gone where the client went away.
    """
    declared = request.headers.get("content-length", "0")
    size = int(declared) if re.fullmatch(r"[0-9]{1,18}", declared) else limit + 1
    if size > limit:
        raise _too_large(limit, option)
    size, now = 0, asyncio.get_running_loop().time
    pieces, wait = request.stream(), request.app.state.config.request_wait_seconds
    begun = now()
    while (piece := await _next_piece(pieces, wait, begun + wait + size / SLOWEST - now())) is not None:
        size += len(piece)
        if size > limit:
            raise _too_large(limit, option)
        yield piece


async def _next_piece(pieces: AsyncGenerator[bytes, None], wait: float, rest: float) -> bytes | None:
    """`wait`: how long a pause may be; `rest`: what is left of the time for all pauses."""
    try:
        async with asyncio.timeout(min(wait, rest)):
            return await anext(pieces, None)
    except TimeoutError:
        slow = f"the body came slower than {SLOWEST} bytes a second" if rest < wait else "no more of the body came"
        raise ApiError("request_timeout", f"{slow} for {wait:g} seconds; send it in one go") from None
    except ClientDisconnect:
        raise Gone from None


class _JsonRequest(Request):
    """A request whose body is strict JSON of limited size, and whose `json` is the `model` that its route takes.

    The framework takes a model as it is: here it is read under the server's limits, and off the loop where it is large.
    """

    model: type[BaseModel]

    async def body(self) -> bytes:
        if not hasattr(self, "_checked"):
            if content_type(self) != "application/json":
                sent = self.headers.get("content-type") or "none"
                raise ApiError("unsupported_media_type", f"content-type must be application/json, it is {sent[:100]}")
            if (encoding := self.headers.get("content-encoding", "identity")) != "identity":
                message = f"content-encoding is {encoding[:100]}; send the body as it is"
                raise ApiError("unsupported_media_type", message)
            limit = self.app.state.config.max_json_bytes
            self._checked = b"".join([piece async for piece in limited(self, limit, "--max-json-bytes")])
            if not self._checked.strip():
                raise invalid("the body is empty; send a JSON object")
        return self._checked

    async def json(self) -> Any:
        data, config = await self.body(), self.app.state.config
        if len(data) <= _LARGE:
            return _read(data, self.model, config)
        lane, tenant = self.app.state.service.bodies, self.state.caller.tenant
        return await unless_gone(self, lane.run_for(tenant, _read, data, self.model, config))


class JsonRoute(APIRoute):
    """A route whose body, if it takes one, is read by `parse_json` under the limits of JSON bodies."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        field = self.body_field

        async def handle(request: Request) -> Response:
            if field is None:
                return await handler(request)
            own = _JsonRequest(request.scope, request.receive)
            own.model = field.field_info.annotation  # type: ignore[assignment]  # None has no routes here
            return await handler(own)

        return handle


def _read(data: bytes, model: type[BaseModel], config: ServeConfig) -> BaseModel:
    value = parse_json(data, config.max_json_nodes)
    try:
        return model.model_validate(value, context=config)
    except ValidationError as error:
        raise invalid_body(error) from None


def _has_more_nodes(data: bytes, most: int) -> bool:
    """Lists, objects and keys, counted outside of strings. Stops at the first that is too many."""
    if data.count(b"[") + data.count(b"{") + data.count(b":") <= most:
        return False
    count = 0
    for match in _NODE.finditer(data):
        count += match[1] is not None
        if count > most:
            return True
    return False


def _too_large(limit: int, option: str) -> ApiError:
    return ApiError("too_large", f"the body is larger than {limit} bytes ({option} of the server)")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"duplicate key {name[:200]!r}")
            seen.add(name)
    return result


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is out of range")
    return value

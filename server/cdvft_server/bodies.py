"""Reading request bodies: JSON without the laxness of the standard parser, and never more bytes than a limit."""

import json
import math
import re
from collections.abc import AsyncGenerator, Callable, Coroutine
from email.message import Message
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from cdvft_server.errors import ApiError, invalid

__all__ = ["JsonRoute", "content_type", "limited", "parse_json"]

_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_json(data: bytes) -> Any:
    """A JSON value from UTF-8 bytes. Raises ApiError for anything else, NaN and duplicate keys included."""
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
    """The body in pieces. Raises ApiError 413 as soon as it is known to exceed `limit` bytes."""
    declared = request.headers.get("content-length", "0")
    size = int(declared) if re.fullmatch(r"[0-9]{1,18}", declared) else limit + 1
    if size > limit:
        raise _too_large(limit, option)
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > limit:
            raise _too_large(limit, option)
        yield piece


class _JsonRequest(Request):
    """A request whose body is strict JSON of limited size."""

    async def body(self) -> bytes:
        if not hasattr(self, "_checked"):
            if content_type(self) != "application/json":
                sent = self.headers.get("content-type") or "none"
                raise ApiError("unsupported_media_type", f"content-type must be application/json, it is {sent[:100]}")
            limit = self.app.state.config.max_json_bytes
            self._checked = b"".join([piece async for piece in limited(self, limit, "--max-json-bytes")])
            if not self._checked.strip():
                raise invalid("the body is empty; send a JSON object")
        return self._checked

    async def json(self) -> Any:
        return parse_json(await self.body())


class JsonRoute(APIRoute):
    """A route whose body, if it takes one, is read by `parse_json` under the limit of JSON bodies."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_JsonRequest(request.scope, request.receive))

        return handle


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

"""Errors as a client sees them: OpenAI's shape, a code, a message that says what was wrong and what is right."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

__all__ = [
    "CODES",
    "ApiError",
    "StartRefused",
    "error_body",
    "install_handlers",
    "invalid",
    "invalid_body",
    "unavailable",
]

log = logging.getLogger(__name__)

MOST_CHARACTERS = 900  # of an error's message
BRANCH = re.compile(r"str|int|list\[.*\]")  # pydantic's name for a branch of a union, where a field's name would be

CODES: Mapping[str, int] = {
    "invalid_request": 400,
    "wrong_task": 400,
    "unsupported_parameter": 400,
    "unsupported_mode": 400,
    "invalid_api_key": 401,
    "forbidden": 403,
    "quota_exceeded": 403,
    "model_not_found": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "conflict": 409,
    "too_large": 413,
    "unsupported_media_type": 415,
    "invalid_adapter": 422,
    "rate_limited": 429,
    "internal_error": 500,
    "overloaded": 503,
    "draining": 503,
    "adapter_unavailable": 503,
    "store_unavailable": 503,
}
"""Every code that this server answers, and its status."""


class StartRefused(ValueError):
    """A configuration that would be unsafe or impossible to serve; the message says what to change."""


class ApiError(HTTPException):
    """An answer that is an error. `param` names the field; `retry_after` seconds becomes the header."""

    def __init__(self, code: str, message: str, param: str | None = None, retry_after: int | None = None) -> None:
        headers = {} if retry_after is None else {"retry-after": str(retry_after)}
        if CODES[code] == 401:
            headers["www-authenticate"] = "Bearer"
        super().__init__(CODES[code], message, headers or None)
        self.code, self.message, self.param = code, message, param

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"

    @property
    def body(self) -> dict[str, Any]:
        """What goes into the response or into a stream's error event."""
        return error_body(self.code, self.message, self.param)


def invalid(message: str, param: str | None = None) -> ApiError:
    """400 invalid_request."""
    return ApiError("invalid_request", message, param)


def invalid_body(error: ValidationError) -> ApiError:
    """What was wrong with a body that its model refused."""
    return _from_validation([{**found, "loc": ("body", *found["loc"])} for found in error.errors(include_url=False)])


def unavailable(code: str, message: str, retry_after: int = 1) -> ApiError:
    """503 with Retry-After."""
    return ApiError(code, message, retry_after=retry_after)


def error_body(code: str, message: str, param: str | None = None) -> dict[str, Any]:
    """Of what was sent, however long, a message has a part: `MOST_CHARACTERS` in all."""
    kind = "invalid_request_error" if CODES[code] < 500 else "server_error"
    if len(message) > MOST_CHARACTERS:
        message = f"{message[: MOST_CHARACTERS - 4]} ..."
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def install_handlers(app: FastAPI) -> None:
    """Every error of the framework in the same shape."""
    app.add_exception_handler(HTTPException, _answer)
    app.add_exception_handler(RequestValidationError, _answer)


async def _answer(request: Request, error: Exception) -> JSONResponse:
    found = _as_api_error(request, error)
    headers = dict(getattr(error, "headers", None) or {})
    return JSONResponse(found.body, found.status_code, headers)


def _as_api_error(request: Request, error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        return _from_validation(error.errors())
    status = error.status_code if isinstance(error, HTTPException) else 500
    if status == 404:
        return ApiError("not_found", f"there is no route {request.url.path}; /openapi.json lists them")
    if status == 405:
        return ApiError("method_not_allowed", f"{request.method} is not possible on {request.url.path}")
    if status < 500:
        return invalid(str(getattr(error, "detail", "")) or HTTPStatus(status).phrase)
    log.error("unexpected status %s: %s", status, error)
    return ApiError("internal_error", "an error of the server; its log has the request id")


def _from_validation(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """The first thing that was wrong with the fields."""
    first = _telling(errors)
    place, *fields = _names(first)
    field = ".".join(fields)
    if not fields:
        return invalid(f"the {place} must be a JSON object" if first["type"] != "missing" else "the body is missing")
    if first["type"] == "extra_forbidden":
        return invalid(
            f"unknown field {field!r} in the {place}; remove it or see /openapi.json for those there are", field
        )
    if first["type"] == "missing":
        return invalid(f"{field!r} is missing in the {place}", field)
    message, told = first["msg"].removeprefix("Value error, "), f" (got {_brief(first.get('input'))})"
    if first["type"] == "too_short":
        message = f"must have at least {first['ctx']['min_length']} item, it is empty"
    if first["type"] in ("too_short", "value_error") and isinstance(first.get("input"), list):
        told = ""  # the message says what is wrong inside the list
    return invalid(f"{field!r} in the {place}: {message}{told}", field)


def _telling(errors: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The first; of a union's branches the one that got furthest into what was sent."""
    first = errors[0]
    if len(_names(first)) == len(first["loc"]):
        return first
    union = first["loc"][:-1]
    return max((error for error in errors if error["loc"][: len(union)] == union), key=lambda error: len(error["loc"]))


def _names(error: Mapping[str, Any]) -> list[str]:
    """Where it was, in the client's words: an unknown field is called what the client called it."""
    loc = [str(part) for part in error["loc"]]
    own = len(loc) - 1 if error["type"] == "extra_forbidden" else len(loc)
    return [part for k, part in enumerate(loc) if k == own or BRANCH.fullmatch(part) is None]


def _brief(value: Any) -> str:
    """A few characters of what was sent, never a whole body; huge integers are not written out."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return "an integer of more than 128 bits"
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = repr(value[:80]) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."

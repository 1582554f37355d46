"""From what httpx saw to what the caller gets."""

import email.utils
import json
import math
from datetime import UTC, datetime
from typing import Any

import httpx

from . import _exceptions as exc

BY_STATUS: dict[int, type[exc.APIStatusError]] = {
    400: exc.BadRequestError,
    401: exc.AuthenticationError,
    403: exc.PermissionDeniedError,
    404: exc.NotFoundError,
    405: exc.MethodNotAllowedError,
    409: exc.ConflictError,
    413: exc.TooLargeError,
    415: exc.UnsupportedMediaTypeError,
    422: exc.UnprocessableAdapterError,
    429: exc.RateLimitedError,
    503: exc.ServiceUnavailableError,
}
STATUS_OF_CODE = {
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
    "conflict": 409,
    "too_large": 413,
    "unsupported_media_type": 415,
    "invalid_adapter": 422,
    "rate_limited": 429,
    "overloaded": 503,
    "draining": 503,
    "adapter_unavailable": 503,
    "store_unavailable": 503,
}


def error_class(status: int) -> type[exc.APIStatusError]:
    return BY_STATUS.get(status, exc.InternalServerError if status >= 500 else exc.APIStatusError)


def status_error(response: httpx.Response) -> exc.APIStatusError:
    """The typed error of an answer that is not 2xx; its body must have been read."""
    try:
        body: Any = json.loads(response.content)
    except ValueError:
        body = response.text
    details = _details(body)
    message = details.get("message") or _unexplained(response)
    return error_class(response.status_code)(
        str(message),
        status_code=response.status_code,
        code=details.get("code"),
        param=details.get("param"),
        request_id=response.headers.get("x-request-id"),
        body=body,
        retry_after=retry_after(response.headers),
    )


def stream_error(body: dict[str, Any], request_id: str | None) -> exc.APIStatusError:
    """The typed error of an event `{"error": {...}}` inside a stream."""
    details = _details(body)
    status = STATUS_OF_CODE.get(str(details.get("code")), 500)
    return error_class(status)(
        str(details.get("message") or body["error"]),
        status_code=status,
        code=details.get("code"),
        param=details.get("param"),
        request_id=request_id,
        body=body,
    )


def connection_error(error: httpx.RequestError, server: str) -> exc.APIConnectionError:
    """The typed error of a request that has no whole answer; `error` is its cause."""
    told = str(error) or type(error).__name__
    found: exc.APIConnectionError
    if isinstance(error, httpx.TimeoutException):
        found = exc.APITimeoutError(f"{server} did not answer in time ({type(error).__name__}); see timeout=")
    elif isinstance(error, httpx.ConnectError):
        found = exc.APIConnectionError(f"cannot reach {server}: {told}; is the server running there?")
    else:
        found = exc.APIConnectionError(f"the connection to {server} broke: {told}")
    found.__cause__ = error
    return found


def retry_after(headers: httpx.Headers) -> float | None:
    """Seconds that Retry-After asks for, given as a number or as an HTTP date; None if it asks nothing."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            when = email.utils.parsedate_to_datetime(value)
        except ValueError:
            return None
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
        seconds = (when - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _details(body: Any) -> dict[str, Any]:
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, str):
        return {"message": error}
    return error if isinstance(error, dict) else {}


def _unexplained(response: httpx.Response) -> str:
    if response.is_redirect:
        return f"redirected to {response.headers.get('location', 'nowhere')}: name that server instead"
    text = " ".join(response.text.split())[:200]
    return f"{response.reason_phrase or 'no reason given'}{': ' if text else ''}{text}"

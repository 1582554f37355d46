"""Everything the client raises about the server, under one base class.

Mistakes in the caller's own arguments stay Python's: `TypeError`, `ValueError`, `FileNotFoundError`.
"""

from typing import Any


class CDVFTError(Exception):
    """Base of every error about a request."""


class APIConnectionError(CDVFTError):
    """The server was not reached, or the connection broke before the answer was whole."""


class APITimeoutError(APIConnectionError):
    """No answer within `timeout`. The server may still have done what was asked."""


class APIResponseError(CDVFTError):
    """The answer is not what this API promises, as when something else listens at `base_url`."""


class APIStatusError(CDVFTError):
    """The server answered with an error; `status_code` and `code` say which.

    An error that arrives inside a stream, after HTTP 200, has the status that belongs to its `code`.

    Attributes:
        message: what was wrong, where, and what would be right, in the server's words.
        status_code: HTTP status.
        code: the error's name, such as `model_not_found`; None if something else answered, as a proxy does.
        param: the request field that was wrong, if the server names one.
        request_id: the request's id, to look it up in the server's log.
        body: the answer as it came: parsed JSON, or text.
        retry_after: seconds after which the server says to try again (429 and 503), else None.
    """

    def __init__(
        self,
        message: str,
        *,
        status_code: int,
        code: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
        body: Any = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status_code = status_code
        self.code = code
        self.param = param
        self.request_id = request_id
        self.body = body
        self.retry_after = retry_after

    def __str__(self) -> str:
        code = f" {self.code}" if self.code else ""
        request = f" (request {self.request_id})" if self.request_id else ""
        return f"{self.status_code}{code}: {self.message}{request}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, dict(self.__dict__))


def _rebuild(kind: type[APIStatusError], message: str, state: dict[str, Any]) -> APIStatusError:
    return kind(**{"message": message, **state})


class BadRequestError(APIStatusError):
    """400 `invalid_request`, `wrong_task`, `unsupported_parameter`, `unsupported_mode`."""


class AuthenticationError(APIStatusError):
    """401 `invalid_api_key`: no key, or a wrong one."""


class PermissionDeniedError(APIStatusError):
    """403 `forbidden`: the key lacks the scope, or a keyless server refuses this Host or Origin. `quota_exceeded`: the
    tenant may have no more adapters or bytes."""


class NotFoundError(APIStatusError):
    """404 `model_not_found`, `not_found`: no such model, version, alias, digest or route for this caller."""


class MethodNotAllowedError(APIStatusError):
    """405 `method_not_allowed`."""


class ConflictError(APIStatusError):
    """409 `conflict`: the base's own name, or a version that an alias still holds."""


class TooLargeError(APIStatusError):
    """413 `too_large`: over one of the server's limits."""


class UnsupportedMediaTypeError(APIStatusError):
    """415 `unsupported_media_type`."""


class UnprocessableAdapterError(APIStatusError):
    """422 `invalid_adapter`: the upload was read, and is not an adapter that this base can serve."""


class RateLimitedError(APIStatusError):
    """429 `rate_limited`; `retry_after` says when to try again."""


class ServiceUnavailableError(APIStatusError):
    """503 `overloaded`, `draining`, `adapter_unavailable`, `store_unavailable`; see `retry_after`."""


class InternalServerError(APIStatusError):
    """Any other 5xx."""

"""Every error answer becomes the class that belongs to it, and says what the server said."""

from collections.abc import Callable
from typing import Any

import cdvft_client as c
import httpx
import pytest

from tests.client.harness import HEADERS, Script, error_body

Connect = Callable[..., Any]

ROWS = [
    (400, "invalid_request", c.BadRequestError),
    (400, "wrong_task", c.BadRequestError),
    (400, "unsupported_parameter", c.BadRequestError),
    (400, "unsupported_mode", c.BadRequestError),
    (401, "invalid_api_key", c.AuthenticationError),
    (403, "forbidden", c.PermissionDeniedError),
    (404, "model_not_found", c.NotFoundError),
    (404, "not_found", c.NotFoundError),
    (405, "method_not_allowed", c.MethodNotAllowedError),
    (409, "conflict", c.ConflictError),
    (413, "too_large", c.TooLargeError),
    (415, "unsupported_media_type", c.UnsupportedMediaTypeError),
    (422, "invalid_adapter", c.UnprocessableAdapterError),
    (429, "rate_limited", c.RateLimitedError),
    (503, "overloaded", c.ServiceUnavailableError),
    (503, "draining", c.ServiceUnavailableError),
    (503, "adapter_unavailable", c.ServiceUnavailableError),
    (503, "store_unavailable", c.ServiceUnavailableError),
    (500, "internal_error", c.InternalServerError),
    (502, "bad_gateway", c.InternalServerError),
    (418, "teapot", c.APIStatusError),
]


@pytest.mark.parametrize(("status", "code", "kind"), ROWS)
def test_status_and_code(connect: Connect, status: int, code: str, kind: type[c.APIStatusError]) -> None:
    body = error_body(code, "no adapter 'x'; upload it first", "model")
    client = connect(transport=Script(httpx.Response(status, json=body, headers=HEADERS)).transport, max_retries=0)
    with pytest.raises(c.APIStatusError) as caught:
        client.classify("x", "text")
    error = caught.value
    assert type(error) is kind
    assert (error.status_code, error.code, error.param, error.request_id) == (status, code, "model", "req-1")
    assert (error.message, error.body) == ("no adapter 'x'; upload it first", body)
    assert str(error) == f"{status} {code}: no adapter 'x'; upload it first (request req-1)"


@pytest.mark.parametrize(("status", "code", "kind"), [*ROWS[:19], (500, "never_heard_of", c.InternalServerError)])
def test_an_error_event_in_a_stream_is_the_same_class(
    connect: Connect, status: int, code: str, kind: type[c.APIStatusError]
) -> None:
    content = b'data: {"error": {"message": "gone wrong", "param": null, "code": "%s"}}\n\n' % code.encode()
    client = connect(transport=Script(httpx.Response(200, content=content, headers=HEADERS)).transport)
    with pytest.raises(c.APIStatusError) as caught:
        list(client.complete_stream("x", "text"))
    assert type(caught.value) is kind
    assert (caught.value.status_code, caught.value.code, caught.value.request_id) == (status, code, "req-1")


def test_an_error_before_the_stream(connect: Connect) -> None:
    step = httpx.Response(404, json=error_body("model_not_found"))
    with pytest.raises(c.NotFoundError, match="model_not_found: what was wrong"):
        list(connect(transport=Script(step).transport).chat_stream("x", [{"role": "user", "content": "hi"}]))


@pytest.mark.parametrize(
    ("status", "content", "message"),
    [
        (502, {"text": "<html>Bad\n gateway</html>"}, "Bad Gateway: <html>Bad gateway</html>"),
        (500, {}, "Internal Server Error"),
        (500, {"json": {"error": "went wrong"}}, "went wrong"),
        (500, {"json": ["?"]}, "Internal Server Error"),
        (307, {"headers": {"location": "https://other/v1"}}, "name that server instead"),
    ],
)
def test_answers_that_are_not_ours(connect: Connect, status: int, content: dict[str, Any], message: str) -> None:
    step = httpx.Response(status, **content)
    with pytest.raises(c.APIStatusError) as caught:
        connect(transport=Script(step).transport).adapter("reviews")
    assert message in caught.value.message
    assert caught.value.code is None


@pytest.mark.parametrize(
    "content",
    [b"<html>hello</html>", b"", b"[]", b'{"id": "cmpl-1"}', b'{"id":"1","model":"m","created":1,"choices":[null]}'],
)
def test_a_success_that_is_not_the_apis(connect: Connect, content: bytes) -> None:
    step = httpx.Response(200, content=content)
    with pytest.raises(c.APIResponseError, match="/v1/completions answered 200"):
        connect(transport=Script(step).transport).complete("x", "text")


@pytest.mark.parametrize("data", ["not json", "[]", "{}", '{"choices": 1}', "null"])
def test_an_event_that_is_not_a_chunk(connect: Connect, data: str) -> None:
    step = httpx.Response(200, content=f"data: {data}\n\n".encode())
    with pytest.raises(c.APIResponseError, match="not a chunk"):
        list(connect(transport=Script(step).transport).complete_stream("x", "text"))

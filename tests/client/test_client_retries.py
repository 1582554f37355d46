"""What is tried again, how often, and after which wait."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import cdvft_client as c
import httpx
import pytest
from cdvft_client import _calls, _retry
from cdvft_client._errors import retry_after

from tests.client.harness import COMPLETION, Connection, LiveServer, Script, adapter_body, error_body

Connect = Callable[..., Any]


@pytest.fixture(autouse=True)
def _no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_retry, "FIRST_WAIT", 0.0)


def refusal(status: int, code: str, after: str | None = None) -> httpx.Response:
    return httpx.Response(status, json=error_body(code), headers={"retry-after": after} if after else {})


@pytest.mark.parametrize(("status", "code"), [(429, "rate_limited"), (503, "overloaded")])
@pytest.mark.parametrize("after", ["0", None])
def test_a_refusal_is_tried_again(connect: Connect, status: int, code: str, after: str | None) -> None:
    script = Script(refusal(status, code, after), refusal(status, code, after), httpx.Response(200, json=COMPLETION))
    assert connect(transport=script.transport).complete("reviews", "Once").text == " a cat"
    assert len(script.requests) == 3
    assert len({request.content for request in script.requests}) == 1


def test_no_more_than_max_retries(connect: Connect) -> None:
    script = Script(*(refusal(503, "draining", "0") for _ in range(9)))
    with pytest.raises(c.ServiceUnavailableError):
        connect(transport=script.transport, max_retries=4).complete("reviews", "Once")
    assert len(script.requests) == 5


def test_a_retry_after_too_long_is_the_callers(connect: Connect) -> None:
    script = Script(refusal(429, "rate_limited", "61"))
    with pytest.raises(c.RateLimitedError) as caught:
        connect(transport=script.transport).complete("reviews", "Once")
    assert caught.value.retry_after == 61.0


@pytest.mark.parametrize("status", [400, 404, 409, 422, 500, 502])
def test_other_errors_are_final(connect: Connect, status: int) -> None:
    script = Script(refusal(status, "x", "0"))
    with pytest.raises(c.APIStatusError):
        connect(transport=script.transport).adapter("reviews")


@pytest.mark.parametrize("error", [httpx.ConnectError("refused"), httpx.ConnectTimeout("slow")])
def test_a_failed_connect_is_tried_again_for_every_call(connect: Connect, error: Exception) -> None:
    script = Script(error, error, httpx.Response(200, json=COMPLETION))
    assert connect(transport=script.transport).complete("reviews", "Once").text == " a cat"


BROKEN = [httpx.ReadError("reset"), httpx.WriteError("reset"), httpx.RemoteProtocolError("closed")]


@pytest.mark.parametrize("error", BROKEN)
def test_a_broken_connection_is_tried_again_where_that_is_harmless(connect: Connect, error: Exception) -> None:
    classified = {"object": "list", "model": "reviews", "data": [{"index": 0, "score": 3.5}]}
    script = Script(
        error,
        httpx.Response(200, json=adapter_body()),
        error,
        httpx.Response(200, json=classified),
        error,
        httpx.Response(200, json=adapter_body()),
        error,
        httpx.Response(200, json=adapter_body()),
    )
    client = connect(transport=script.transport)
    client.adapter("reviews")
    client.classify("reviews", "text")
    client.set_alias("reviews", "prod", 2)
    client.upload(name="reviews", config={}, weights=b"weights")
    first, second = script.requests[-2:]
    assert b"weights" in first.content
    assert b"weights" in second.content


@pytest.mark.parametrize("error", BROKEN)
@pytest.mark.parametrize(
    ("call", "args"),
    [
        ("complete", ("x", "text")),
        ("chat", ("x", [])),
        ("delete", ("x",)),
        ("delete_alias", ("x", "prod")),
    ],
)
def test_a_broken_connection_is_final_where_it_is_not(connect: Connect, error: Exception, call: str, args: Any) -> None:
    with pytest.raises(c.APIConnectionError, match="broke") as caught:
        getattr(connect(transport=Script(error).transport), call)(*args)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [httpx.ReadTimeout("late"), httpx.WriteTimeout("late"), httpx.PoolTimeout("full")])
def test_a_timeout_is_final(connect: Connect, error: Exception) -> None:
    with pytest.raises(c.APITimeoutError, match="did not answer in time"):
        connect(transport=Script(error).transport).adapter("reviews")


@pytest.mark.parametrize("probe", ["health", "ready"])
def test_a_probe_says_how_things_are_now(connect: Connect, probe: str) -> None:
    with pytest.raises(c.APIConnectionError, match="is the server running"):
        getattr(connect(transport=Script(httpx.ConnectError("refused")).transport), probe)()


def test_a_stream_that_is_refused_is_tried_again(connect: Connect) -> None:
    script = Script(refusal(503, "overloaded", "0"), httpx.Response(200, content=b"data: [DONE]\n\n"))
    assert list(connect(transport=script.transport).complete_stream("x", "text")) == []


def test_nobody_listens(connect: Connect) -> None:
    with LiveServer() as server:
        url = server.url
    with pytest.raises(c.APIConnectionError, match=f"cannot reach {url}: .*is the server running there"):
        connect(url).adapter("reviews")


def test_a_server_that_hangs_up_once(connect: Connect) -> None:
    def answer(connection: Connection) -> None:
        connection.answer(adapter_body())

    with LiveServer(lambda connection: None, answer) as server:
        assert connect(server.url).adapter("reviews").version == 2
        assert server.connections == 2


def call(**options: Any) -> _calls.Call[Any]:
    return _calls.Call("GET", "/", lambda response: None, **options)


def test_waits_double_up_to_a_limit_and_retry_after_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_retry, "FIRST_WAIT", 0.5)
    retries = _retry.Retries(call(), 7)
    plain = c.ServiceUnavailableError("full", status_code=503)
    told = c.ServiceUnavailableError("full", status_code=503, retry_after=7.5)
    assert retries.wait(told) == 7.5
    waits = [retries.wait(plain) for _ in range(6)]
    for wait, longest in zip(waits, [0.5, 1, 2, 4, 8, 8], strict=True):
        assert longest / 2 <= wait <= longest
    with pytest.raises(c.ServiceUnavailableError):
        retries.wait(plain)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("0", 0), ("2", 2), ("1.5", 1.5), ("-3", 0), ("nan", None), ("inf", None), ("soon", None), ("", None)],
)
def test_retry_after_in_seconds(value: str, seconds: float | None) -> None:
    assert retry_after(httpx.Headers({"retry-after": value})) == seconds


def test_retry_after_as_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    waited = retry_after(httpx.Headers({"retry-after": later}))
    assert waited is not None
    assert 25 < waited <= 30
    assert retry_after(httpx.Headers({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"})) == 0
    assert retry_after(httpx.Headers()) is None

"""Where the server's address, the key and the options come from."""

import re
from collections.abc import Callable
from typing import Any

import cdvft_client as c
import httpx
import pytest

from tests.client.harness import Script, adapter_body

Connect = Callable[..., Any]


def request(connect: Connect, *args: Any, **options: Any) -> httpx.Request:
    script = Script(httpx.Response(200, json=adapter_body()))
    connect(*args, **options, transport=script.transport).adapter("reviews")
    return script.requests[0]


def test_defaults(connect: Connect) -> None:
    sent = request(connect)
    assert str(sent.url) == "http://127.0.0.1:8000/v1/adapters/reviews"
    assert "authorization" not in sent.headers
    assert sent.headers["user-agent"] == f"cdvft-client/{c.__version__}"
    assert sent.extensions["timeout"] == {"connect": 5.0, "read": 600.0, "write": 600.0, "pool": 600.0}


def test_environment_and_arguments(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDVFT_SERVER", "http://from-env:9000/")
    monkeypatch.setenv("CDVFT_API_KEY", "env-key")
    sent = request(connect)
    assert str(sent.url) == "http://from-env:9000/v1/adapters/reviews"
    assert sent.headers["authorization"] == "Bearer env-key"
    sent = request(connect, "https://given", api_key="given-key", timeout=3)
    assert str(sent.url) == "https://given/v1/adapters/reviews"
    assert sent.headers["authorization"] == "Bearer given-key"
    assert sent.extensions["timeout"]["read"] == 3
    assert "authorization" not in request(connect, api_key="").headers


@pytest.mark.parametrize("given", ["http://host:1/prefix", "http://host:1/prefix/", " http://host:1/prefix/v1/ "])
def test_a_prefix_stays_and_the_v1_of_openais_clients_may_be_there(connect: Connect, given: str) -> None:
    assert str(request(connect, given).url) == "http://host:1/prefix/v1/adapters/reviews"


@pytest.mark.parametrize("given", ["localhost:8000", "127.0.0.1:8000", "ftp://host", "http://", "/v1", "http://h:x"])
def test_an_address_that_is_none(connect: Connect, given: str) -> None:
    with pytest.raises(ValueError, match=rf"base_url \(or CDVFT_SERVER\) '{re.escape(given)}' is not"):
        connect(given)


@pytest.mark.parametrize("key", ["two words", "line\n", "schlüssel"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(connect: Connect, key: str) -> None:
    with pytest.raises(ValueError, match="api_key") as caught:
        connect(api_key=key)
    assert key not in str(caught.value)


def test_max_retries_is_checked(connect: Connect) -> None:
    with pytest.raises(ValueError, match="max_retries is -1"):
        connect(max_retries=-1)


def test_neither_repr_nor_errors_show_secrets() -> None:
    with c.Client("http://user:secret@host/v1", api_key="hidden", transport=Script().transport) as client:
        assert repr(client) == "Client('http://host')"
    script = Script(httpx.ConnectError("refused"))
    with (
        c.Client("http://user:secret@host", max_retries=0, transport=script.transport) as client,
        pytest.raises(c.APIConnectionError, match="cannot reach http://host: refused"),
    ):
        client.adapter("reviews")

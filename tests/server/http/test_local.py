"""Without keys only this machine is served: Host, Origin, and the address to listen on."""

import pytest
from cdvft_server.app import create_app
from cdvft_server.config import ServeConfig
from cdvft_server.errors import ApiError, StartRefused
from cdvft_server.gate import LocalOnly
from starlette.datastructures import Headers

from tests.server.http.harness import Fleet

LOCAL = LocalOnly("127.0.0.1")
OPEN = LocalOnly("0.0.0.0", ["models.example"])


def refused(guard: LocalOnly, *hosts: str, origin: str | None = None) -> bool:
    raw = [(b"host", host.encode()) for host in hosts]
    raw += [] if origin is None else [(b"origin", origin.encode())]
    try:
        guard.check(Headers(raw=raw))
    except ApiError as error:
        return error.code == "forbidden"
    return False


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8000", "localhost:8000", "LOCALHOST", "[::1]:8000", "127.9.9.9"]
)
def test_this_machine_is_served(host: str) -> None:
    assert not refused(LOCAL, host)
    assert not refused(OPEN, host)
    assert not refused(LOCAL, host, origin=f"http://{host}")


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "a b", "127.0.0.1:x", "10.0.0.1", "[::1"],
)
def test_others_are_not(host: str) -> None:
    assert refused(LOCAL, host)


def test_an_open_address_is_called_by_any_literal_one_or_a_known_name() -> None:
    """A page that rebinds a name of its own can only send that name."""
    assert not refused(OPEN, "10.0.0.1:8000")
    assert not refused(OPEN, "models.example:80")
    assert refused(OPEN, "evil.example")


def test_one_host_exactly() -> None:
    assert refused(LOCAL)
    assert refused(LOCAL, "127.0.0.1", "evil.example")


@pytest.mark.parametrize(
    "origin", ["null", "http://evil.example", "http://localhost:3000", "http://[::1", "", "https://"]
)
def test_pages_of_other_origins_are_not_served(origin: str) -> None:
    assert refused(LOCAL, "localhost:8000", origin=origin)


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/openapi.json", "/nowhere"])
def test_every_route_is_guarded(decoder: Fleet, path: str) -> None:
    assert decoder.live.get(path, headers={"host": "evil.example"}).status_code == 403


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "models.example"])
def test_an_open_address_without_keys_is_refused(host: str) -> None:
    with pytest.raises(StartRefused, match="allow-unauthenticated"):
        create_app(ServeConfig(host=host))
    assert create_app(ServeConfig(host=host, allow_unauthenticated=True))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.1.2.3"])
def test_loopback_is_not(host: str) -> None:
    assert create_app(ServeConfig(host=host))

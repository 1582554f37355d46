from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cdvft_client import AsyncClient, Client

from tests.client.harness import Blocking


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CDVFT_SERVER", "CDVFT_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Makes clients of either kind with the same face: `connect(base_url, **options)`."""
    made: list[Any] = []

    def make(*args: Any, **options: Any) -> Any:
        client = Client(*args, **options) if request.param == "sync" else Blocking(AsyncClient(*args, **options))
        made.append(client)
        return client

    yield make
    for client in made:
        client.close()

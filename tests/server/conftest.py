"""Databases for tests that run on either kind."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cdvft_server.store import Store

from tests.server.postgres import Postgres, running
from tests.server.store_maker import url_of


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres | None]:
    with running() as server:
        if server is not None:
            Store.open(server.url("postgres")).close()  # what `postgres_url` is a copy of
        yield server


@pytest.fixture
def postgres(postgres_server: Postgres | None) -> Postgres:
    """A server for all tests: databases of their own."""
    if postgres_server is None:
        pytest.skip("PostgreSQL's server (initdb, pg_ctl) is not installed")
    return postgres_server


@pytest.fixture
def postgres_url(postgres: Postgres) -> str:
    """A database that a store was opened on before."""
    return postgres.create("postgres")


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store."""
    return str(request.getfixturevalue("postgres_url")) if request.param == "postgresql" else url_of(tmp_path)

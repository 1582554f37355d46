"""Databases for tests that run on either kind."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cdvft_server.store import Store
from cdvft_server.store.tables import metadata

from tests.server.postgres import Postgres, running
from tests.server.store_maker import url_of


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres | None]:
    with running() as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr("cdvft_server.store.database.READ_SECONDS", 60.0)  # whatever else this machine does
        if server is not None:
            Store.open(server.url()).close()
        yield server


@pytest.fixture
def postgres(postgres_server: Postgres | None) -> Postgres:
    """One server for all tests, which none of them stops."""
    if postgres_server is None:
        pytest.skip("PostgreSQL's server (initdb, pg_ctl) is not installed")
    return postgres_server


@pytest.fixture
def postgres_url(postgres: Postgres) -> str:
    """An empty store, quicker than a new database: the tables of the test before are emptied."""
    postgres.execute(f"TRUNCATE {', '.join(metadata.tables)} RESTART IDENTITY")
    return postgres.url()


@pytest.fixture
def new_postgres_url(postgres: Postgres) -> Iterator[str]:
    """A database in which nothing was made."""
    with postgres.database() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty store."""
    return str(request.getfixturevalue("postgres_url")) if request.param == "postgresql" else url_of(tmp_path)

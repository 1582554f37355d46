"""kill -9 of real servers under traffic: what was answered holds, what was not is whole or absent, all over HTTP.

One server on SQLite, and on PostgreSQL, killed and started again; several that share a PostgreSQL, one of which dies.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from threading import Event

import httpx
import pytest
from cdvft.backbone import Backbone
from cdvft_server.service.replication import BEAT_SECONDS
from cdvft_server.store.replicas import DEAD_SECONDS
from sqlalchemy import make_url

from tests.server.http.changes import Put, Remove
from tests.server.http.contents import Content, asking, make_contents
from tests.server.http.forked import Nursery, Server, nursery
from tests.server.http.harness import WAIT, wait_until
from tests.server.http.traffic import Traffic, asker
from tests.server.postgres import Postgres, execute

ROUNDS, LONG_ROUNDS = 2, 100
MOST_CHANGES, MOST_SECONDS = 25, 0.05  # from a round's begin to its kill
START_SECONDS = 1.0  # about as long as a start takes
ORPHANS = "SELECT count(*) FROM blobs WHERE sha256 NOT IN (SELECT sha256 FROM version_files)"
QUICK = {
    "cdvft_server.store.replicas.DEAD_SECONDS": 2,
    "cdvft_server.service.replication.BEAT_SECONDS": 0.5,
    "cdvft_server.service.replication.NEWS_SECONDS": 0.05,
}


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with nursery(tmp_path_factory.mktemp("nursery")) as started:
        yield started


@pytest.fixture(scope="module")
def contents(llama: Backbone) -> list[Content]:
    return make_contents(llama, 8)


@pytest.fixture
def site_on(forks: Nursery, llama: Backbone) -> "SiteOn":
    return partial(Site, forks, llama)


@pytest.fixture(params=["sqlite", "postgresql"])
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> "NewUrl":
    """Of a database in which nothing was made."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgres").database  # type: ignore[no-any-return]
    names = count()
    return lambda: nullcontext(f"sqlite:///{tmp_path}/{next(names)}/store.db")


@pytest.fixture
def shared_url(postgres: Postgres) -> Iterator[str]:
    with postgres.database() as url:
        yield url


class Site:
    """A database with servers on it; each is named, so that its connections are known."""

    def __init__(self, forks: Nursery, base: Backbone, url: str, constants: Mapping[str, float] | None = None) -> None:
        self._forks, self._base, self.url, self._constants = forks, base, url, constants
        self._names = (f"server-{k}" for k in count())
        self._named: dict[int, str] = {}
        self._postgres = make_url(url).get_backend_name() == "postgresql"

    def start(self) -> Server:
        """Ready."""
        return self._start(self._forks.start)

    def begin(self) -> Server:
        """On its way."""
        return self._start(self._forks.begin)

    def _start(self, how: Callable[..., Server]) -> Server:
        name = next(self._names)
        url = f"{self.url}&application_name={name}" if self._postgres else self.url
        options = ["--base", str(self._base.path), "--database", url, "--merged-memory", "0", "--host-memory", "0"]
        server = how(*options, constants=self._constants)
        self._named[server.pid] = name
        return server

    def kill(self, server: Server) -> None:
        """And wait until the database has done with what it was asked for last."""
        server.kill()
        if self._postgres:
            theirs = f"FROM pg_stat_activity WHERE application_name = '{self._named[server.pid]}'"
            wait_until(lambda: execute(self.url, f"SELECT count(*) {theirs}") == [(0,)])

    def check_whole(self) -> None:
        assert execute(self.url, ORPHANS) == [(0,)]
        if not self._postgres:
            assert execute(self.url, "PRAGMA integrity_check") == [("ok",)]
            assert execute(self.url, "PRAGMA foreign_key_check") == []


SiteOn = Callable[..., Site]
NewUrl = Callable[[], AbstractContextManager[str]]


def kill_again_and_again(site: Site, contents: list[Content], rounds: int, seed: int) -> None:
    traffic, rng = Traffic(contents, seed), Random(seed)
    traffic.servers = [site.start()]
    for _ in range(rounds):
        with traffic.running():
            traffic.wait_for(rng.randint(1, MOST_CHANGES))
            Event().wait(rng.uniform(0, MOST_SECONDS))  # to some point of some change
            site.kill(traffic.servers[0])
        execute(site.url, "DELETE FROM replicas")  # a while later, no delete waits for it any more
        traffic.servers = [site.start()]
        traffic.check()
        site.check_whole()
    traffic.servers[0].kill()
    print(f"{make_url(site.url).get_backend_name()}, {rounds} rounds: {traffic.figures}")


def test_a_killed_server_loses_nothing(site_on: SiteOn, store_url: str, contents: list[Content]) -> None:
    kill_again_and_again(site_on(store_url), contents, ROUNDS, 1)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_100_kills_lose_nothing(site_on: SiteOn, store_url: str, contents: list[Content]) -> None:
    kill_again_and_again(site_on(store_url), contents, LONG_ROUNDS, 2)


def kill_during_starts(site: Site, contents: list[Content], rng: Random) -> None:
    """On a database without anything: whatever the last one left, the next one makes good."""
    for _ in range(3):
        server = site.begin()
        Event().wait(rng.uniform(0, START_SECONDS))
        site.kill(server)
    server = site.start()
    with asker(server) as client:
        assert Put(contents[0]).send(client, "first").status_code == 201
        answer = client.post("/v1/completions", json=asking("first@1"))
        assert answer.raise_for_status().json()["choices"][0]["text"] == contents[0].text
    site.kill(server)
    site.check_whole()


def test_a_kill_during_the_first_start(site_on: SiteOn, new_url: NewUrl, contents: list[Content]) -> None:
    with new_url() as url:
        kill_during_starts(site_on(url), contents, Random(5))


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_kills_during_the_first_start(site_on: SiteOn, new_url: NewUrl, contents: list[Content]) -> None:
    for seed in range(30):
        with new_url() as url:
            kill_during_starts(site_on(url), contents, Random(seed))


def kill_replicas(site: Site, contents: list[Content], replicas: int, rounds: int, seed: int) -> list[float]:
    """How long, in seconds, a delete of what the dead one used waited for it, each time."""
    traffic, rng, waited = Traffic(contents, seed), Random(seed), []
    traffic.servers = [site.start() for _ in range(replicas)]
    for number in range(rounds):
        name, dying = f"held-{number}", rng.randrange(replicas)
        victim, other = traffic.servers[dying], traffic.servers[dying - 1]
        with asker(other) as client, traffic.running():
            assert Put(contents[0]).send(client, name).status_code == 201
            traffic.wait_for(rng.randint(1, MOST_CHANGES))
            with in_use(victim, name):
                site.kill(victim)
            traffic.settled.set()
            begun = time.monotonic()
            assert Remove(None).send(client, name).status_code == 200
            waited.append(time.monotonic() - begun)
            for kind in ("upload", "move", "delete"):
                traffic.wait_for(1, kind)
        traffic.servers[dying] = site.start()
        traffic.check()
        site.check_whole()
    for server in traffic.servers:
        server.kill()
    print(f"{replicas} replicas, {rounds} rounds: {traffic.figures}; deletes waited {[round(s, 1) for s in waited]} s")
    return waited


@contextmanager
def in_use(server: Server, name: str) -> Iterator[None]:
    """A stream of it has begun, and is far from its end."""
    body = asking(name, stream=True) | {"max_tokens": 200}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=WAIT) as answer:
        next(answer.iter_lines())
        yield


def test_a_killed_replica_stops_no_other(site_on: SiteOn, shared_url: str, contents: list[Content]) -> None:
    kill_replicas(site_on(shared_url, QUICK), contents, 2, 1, 3)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_a_dead_replica_is_not_waited_for_long(site_on: SiteOn, shared_url: str, contents: list[Content]) -> None:
    """By the clock: deletes go on once it counts as dead, before they would give up."""
    waited = kill_replicas(site_on(shared_url), contents, 3, 10, 4)
    assert max(waited) < DEAD_SECONDS + BEAT_SECONDS + 2

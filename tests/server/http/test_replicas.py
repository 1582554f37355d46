"""Two servers on one database: what is uploaded on one can be used on the other at once, a delete drains on both."""

import json
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from cdvft.backbone import Backbone
from cdvft.checkpoint import adapter_files
from cdvft_server.config import ServeConfig
from cdvft_server.store import cache_key

from tests.server.http.changes import Move, Put, Remove
from tests.server.http.contents import asking, make_contents
from tests.server.http.harness import WAIT, Live, wait_until
from tests.server.http.traffic import look
from tests.server.postgres import Postgres, execute
from tests.tiny import random_adapter

LONG = {"max_tokens": 80, "ignore_eos": True}


@pytest.fixture(scope="module")
def url(
    request: pytest.FixtureRequest, postgres_server: Postgres | None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path_factory.mktemp('replicas')}/store.db"
        return
    if postgres_server is None:
        pytest.skip("PostgreSQL's server (initdb, pg_ctl) is not installed")
    with postgres_server.database() as url:
        yield url


@pytest.fixture(scope="module")
def pair(url: str, llama: Backbone) -> Iterator[tuple[Live, Live]]:
    config = ServeConfig(base=str(llama.path), port=0, database=url, drain_seconds=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cdvft_server.store.replicas.DEAD_SECONDS", 600)  # however slow this machine is
        with Live(config) as one, Live(config) as two:
            for live in (
                one,
                two,
            ):  # FastAPI makes routes at the first request, and warnings of that are of all threads
                assert live.get("/nowhere").status_code == 404
            yield one, two


pytestmark = pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True, scope="module")


def put(live: Live, llama: Backbone, name: str, seed: int, **fields: str) -> dict[str, Any]:
    answer = live.upload(name, adapter_files(random_adapter(llama.info, seed), llama.info), **fields)
    assert answer.status_code == 201, answer.text
    return answer.json()


def text_of(answer: Any) -> str:
    assert answer.status_code == 200, answer.text
    assert "x-adapter-stale" not in answer.headers
    return str(answer.json()["choices"][0]["text"])


def test_an_upload_is_there_on_the_other_with_its_answer(pair: tuple[Live, Live], llama: Backbone) -> None:
    one, two = pair
    for number, (here, there) in enumerate([(one, two), (two, one)]):
        digest = put(here, llama, "shared", number)["digest"]
        answer = there.complete("shared")
        assert answer.headers["x-adapter-digest"] == digest
        assert text_of(answer) == text_of(here.complete("shared"))
        assert there.get("/v1/models/shared").json()["root"] == digest


def test_pointers_move_for_all(pair: tuple[Live, Live], llama: Backbone) -> None:
    one, two = pair
    digests = [put(one, llama, "moving", seed, alias="prod")["digest"] for seed in (10, 11)]
    for version in (1, 2, 1):
        for alias in ("prod", "latest"):
            assert one.client.put(f"/v1/adapters/moving/aliases/{alias}", json={"version": version}).status_code == 200
        for model in ("moving@prod", "moving"):
            assert two.complete(model, max_tokens=1).headers["x-adapter-digest"] == digests[version - 1]


def test_a_delete_drains_on_both(pair: tuple[Live, Live], llama: Backbone) -> None:
    """Hidden at once on both; who uses it on the other goes on to its end, and only then it is answered."""
    one, two = pair
    digest = put(one, llama, "leaving", 20)["digest"]
    alone = text_of(two.complete("leaving", **LONG))
    wait_until(lambda: two.service._parts.pool.is_resident(cache_key("default", digest)))
    body = {"model": "leaving", "prompt": "the cat", "temperature": 0, "stream": True, **LONG}
    held = two.service._parts.flights.open("default", "leaving")  # a call that ends when this test says so
    held.version_id = two.service._parts.store.get("default", "leaving", llama.info.digest).id
    answers: list[Any] = []
    deleting = threading.Thread(target=lambda: answers.append(one.client.delete("/v1/adapters/leaving")))
    with two.client.stream("POST", "/v1/completions", json=body) as stream:
        lines = stream.iter_lines()
        texts = [next(lines)]
        deleting.start()
        wait_until(lambda: one.complete("leaving").status_code == 404)
        assert two.complete("leaving").status_code == 404
        assert not answers
        two.loop.call_soon_threadsafe(held.land)
        texts += list(lines)
    chunks = [json.loads(line[6:]) for line in texts if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == alone
    deleting.join(WAIT)
    assert answers[0].status_code == 200
    for live in pair:
        live.wait_until_idle()
        pool = live.service._parts.pool
        assert not pool.is_resident(cache_key("default", digest))
        assert digest not in pool.host


def test_one_name_changed_on_both_at_once(pair: tuple[Live, Live], llama: Backbone) -> None:
    """Uploads, moves, deletes and requests meet in any order: each is made whole or refused, never an error of ours."""
    contents = {own.digest: own for own in make_contents(llama, 3)}
    numbers: list[int] = []

    def work(seed: int) -> None:
        rng, client = random.Random(seed), pair[seed % 2].client
        for _ in range(4):
            answer = Put(rng.choice(list(contents.values())), "prod").send(client, "busy")
            assert answer.status_code in (200, 201), answer.text
            version = answer.json()["version"]
            if answer.status_code == 201:
                numbers.append(version)
            change = rng.choice([Move("prod", version), Move("latest", version), Remove(version), Remove(None)])
            answer = change.send(client, "busy")
            assert answer.status_code in (200, 404, 409), answer.text
            answer = client.post("/v1/completions", json=asking("busy@prod"))
            assert answer.status_code in (200, 404), answer.text
            if answer.status_code == 200:
                assert answer.json()["choices"][0]["text"] == contents[answer.headers["x-adapter-digest"]].text

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    assert len(set(numbers)) == len(numbers)
    one, two = (look(live.client, "busy") for live in pair)
    assert one == two
    for live in pair:
        for version, digest in one.versions.items():
            answer = live.post("/v1/completions", asking(f"busy@{version}"))
            assert text_of(answer) == contents[digest].text
        live.wait_until_idle()


def test_a_replica_that_died_is_not_waited_for(pair: tuple[Live, Live], llama: Backbone, url: str) -> None:
    _, two = pair
    execute(url, "INSERT INTO replicas SELECT 'dead', base_digest, since, seen_at - 601 FROM replicas LIMIT 1")
    put(two, llama, "short", 21)
    assert two.client.delete("/v1/adapters/short").status_code == 200
    assert execute(url, "SELECT replica FROM receipts WHERE replica = 'dead'") == []
    execute(url, "DELETE FROM replicas WHERE id = 'dead'")


def test_a_pin_is_followed(pair: tuple[Live, Live], llama: Backbone) -> None:
    one, two = pair
    first = put(one, llama, "stays", 30)["digest"]

    def pinned() -> list[float]:
        return [live.gauge("cdvft_adapters_pinned") for live in pair]

    assert one.client.put("/v1/adapters/stays", json={"pinned": True}).status_code == 200
    wait_until(lambda: pinned() == [1, 1])
    assert two.service._parts.pool.is_resident(cache_key("default", first))
    second = put(two, llama, "stays", 31)["digest"]
    wait_until(lambda: one.service._parts.pool.is_resident(cache_key("default", second)) and pinned() == [1, 1])
    assert two.client.put("/v1/adapters/stays", json={"pinned": False}).status_code == 200
    wait_until(lambda: pinned() == [0, 0])


def test_hits_of_both_add_up(pair: tuple[Live, Live], llama: Backbone) -> None:
    one, two = pair
    put(one, llama, "counted", 40)
    for live in (one, two, two):
        text_of(live.complete("counted"))
    wait_until(lambda: one.get("/v1/adapters/counted").json()["hits"] == 3)
    wait_until(lambda: two.get("/v1/adapters/counted").json()["hits"] == 3)


def test_a_server_that_stops_leaves(pair: tuple[Live, Live], llama: Backbone, url: str) -> None:
    one, _ = pair
    with Live(one.config) as third:
        assert third.get("/ready").status_code == 200
        assert execute(url, "SELECT count(*) FROM replicas") == [(3,)]
    assert execute(url, "SELECT count(*) FROM replicas") == [(2,)]

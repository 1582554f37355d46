"""kill -9 at any moment: what was acknowledged is there with its bytes, what was not is whole or absent."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from cdvft_server.exceptions import NotFound
from cdvft_server.store import Store
from sqlalchemy import make_url

from tests.server.postgres import execute
from tests.server.store_maker import BASE, ME, new

ROUNDS = {"sqlite": 4, "postgresql": 2}
SIZE = 200_000  # bytes of weights: many pages, so that most kills come in the middle of a transaction
CHILD = """
import json, sys
from cdvft_server.store import Store
from tests.server.store_maker import BASE, ME, new, url_of

store = Store.open(sys.argv[1])
for number in range(int(sys.argv[2]), 10**9):
    name = f"n{number % 3}"
    row, created = store.put_version(ME, name, new(f"{number}", size=int(sys.argv[3])), alias="prod")
    print(json.dumps(["put", name, row.version, str(number)]), flush=True)
    store.set_alias(ME, name, "canary", row.version, BASE)
    print(json.dumps(["moved", name, row.version, ""]), flush=True)
    if number % 4 == 3 and row.version > 1:
        print(json.dumps(["deleting", name, row.version - 1, ""]), flush=True)
        try:
            store.delete(ME, name, row.version - 1, BASE)
            print(json.dumps(["deleted", name, row.version - 1, ""]), flush=True)
        except Exception as error:
            print(json.dumps(["failed", name, row.version - 1, repr(error)]), flush=True)
"""


def run_and_kill(url: str, first: int, chance: random.Random) -> list[list]:
    """The child's reports up to its end, which comes at a random moment after a random number of them."""
    command = [sys.executable, "-c", CHILD, url, str(first), str(SIZE)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(chance.randint(1, 20))]
        for _ in range(chance.randint(0, 60_000)):  # up to some milliseconds of a transaction
            pass
        child.kill()
        lines += child.stdout.readlines()
    assert child.returncode == -9
    return [json.loads(line) for line in lines if line.endswith("\n")]


def test_nothing_acknowledged_is_lost_and_nothing_is_partial(store_url: str) -> None:
    kill_again_and_again(store_url, ROUNDS[make_url(store_url).get_backend_name()], 1)


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seed", [2])
def test_100_rounds(store_url: str, seed: int) -> None:
    kill_again_and_again(store_url, 100, seed)


def kill_again_and_again(url: str, rounds: int, seed: int) -> None:
    chance = random.Random(seed)
    there: dict[tuple[str, int], str] = {}  # acknowledged, by name and version
    undecided: set[tuple[str, int]] = set()  # deletes that were begun and not acknowledged
    first = 0
    moved: dict[str, int] = {}  # where each name's canary points, as acknowledged last
    for _ in range(rounds):
        for kind, name, version, text in run_and_kill(url, first, chance):
            assert kind != "failed", text
            if kind == "put":
                there[name, version] = text
                first = int(text) + 1
            elif kind == "moved":
                moved[name] = version
            elif kind == "deleting":
                undecided.add((name, version))
            else:
                undecided.discard((name, version))
                there.pop((name, version), None)  # stored and deleted, without its own acknowledgement between
        check(url, there, undecided, moved)
        first += 1  # the upload that was under way may be stored


def check(url: str, there: dict[tuple[str, int], str], undecided: set[tuple[str, int]], moved: dict[str, int]) -> None:
    store = Store.open(url)
    found: dict[tuple[str, int], str] = {}
    for listed in store.list_adapters(ME, BASE)[0]:
        for row in store.list_versions(ME, listed.name, BASE):
            text = row.summary["text"]
            assert store.files(row.id) == new(text, size=SIZE).files
            found[row.name, row.version] = text
        assert listed.aliases.get("canary", 0) >= moved.get(listed.name, 0)  # the last move may be unacknowledged
        versions = [version for name, version in found if name == listed.name]
        assert listed.version == max(versions) == listed.aliases["prod"]
    for key, text in there.items():
        if key in undecided:
            found.setdefault(key, text)
        assert found[key] == text
    extra = found.keys() - there.keys()
    for name, version in extra:  # stored, and killed before it could say so: one at most in each round
        there[name, version] = found[name, version]
    assert len(extra) <= 1
    for name, version in undecided:
        try:
            store.get(ME, name, BASE, version)
        except NotFound:
            del there[name, version]
    undecided.clear()
    store.close()

    if url.startswith("sqlite"):
        assert execute(url, "PRAGMA integrity_check") == [("ok",)]
        assert execute(url, "PRAGMA foreign_key_check") == []
    orphans = "SELECT count(*) FROM blobs WHERE sha256 NOT IN (SELECT sha256 FROM version_files)"
    assert execute(url, orphans) == [(0,)]

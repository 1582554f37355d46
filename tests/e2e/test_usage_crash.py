"""kill -9 of a real server under traffic: its usage ledger has lost no more than the end, and counted nothing twice."""

import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

import httpx
import pytest

from tests.e2e.serving import Server, start, wait_until

CLIENTS = 3
TOKENS = 4  # of each answer
ADAPTERS = ("sea-tales", "topic")
STREAMED = "cdvft-tiny"


class Traffic(Thread):
    """Asks one adapter after the other, one request at a time, until the server is gone."""

    def __init__(self, url: str, adapter: str) -> None:
        super().__init__()
        self.url, self.adapter = url, adapter
        self.answered: list[tuple[float, int]] = []  # when, and its prompt's tokens
        self.stopped = Event()

    def run(self) -> None:
        body = {"prompt": "One morning,", "max_tokens": TOKENS, "ignore_eos": True}
        path = "/v1/completions"
        if self.adapter == "topic":
            path, body = "/v1/classify", {"input": "I am glad about the goat."}
        with httpx.Client(base_url=self.url, timeout=60) as client, suppress(httpx.TransportError):
            while not self.stopped.is_set():
                answer = client.post(path, json={"model": self.adapter, **body}).raise_for_status()
                self.answered.append((time.monotonic(), answer.json()["usage"]["prompt_tokens"]))


@contextmanager
def streaming(url: str) -> Iterator[Iterator[str]]:
    """Lines of one long answer of the base; a kill may break it off."""
    body = {"model": STREAMED, "prompt": "A", "max_tokens": 200, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as answer:
        yield answer.iter_lines()


def ledger(database: Path, adapter: str) -> tuple[int, int, int]:
    """Requests, prompt tokens, completion tokens, as another process sees them."""
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    sums = "SELECT sum(requests), sum(prompt_tokens), sum(completion_tokens) FROM usage WHERE adapter = ?"
    found = connection.execute(sums, (adapter,)).fetchone()
    connection.close()
    return tuple(value or 0 for value in found)  # type: ignore[return-value]


def crash(database: Path, server: Server, chance: random.Random) -> tuple[list[Traffic], dict[str, int], float]:
    """The traffic, the requests of each adapter that the ledger was seen to have, and when the server was killed."""
    before = {adapter: ledger(database, adapter)[0] for adapter in ADAPTERS}
    streamed = ledger(database, STREAMED)[2]
    traffic = [Traffic(server.url, ADAPTERS[k % 2]) for k in range(CLIENTS)]
    for own in traffic:
        own.start()
    try:
        with suppress(httpx.TransportError), streaming(server.url) as lines:
            next(lines)
            for adapter in ADAPTERS:
                wait_until(lambda adapter=adapter: ledger(database, adapter)[0] >= before[adapter] + 5, "usage")
            wait_until(lambda: ledger(database, STREAMED)[2] > streamed, "usage of a stream")
            seen = {adapter: ledger(database, adapter)[0] for adapter in ADAPTERS}
            Event().wait(chance.random())
            server.kill()
        killed = time.monotonic()
    finally:
        server.kill()
        for own in traffic:
            own.stopped.set()
            own.join()
    return traffic, seen, killed


def check(database: Path, rounds: int, seconds: float | None) -> None:
    """`seconds`: what was answered so long before the kill must be there; None: only what was seen there before."""
    chance = random.Random(1)
    for _ in range(rounds):
        server = start(database)
        before = {adapter: ledger(database, adapter) for adapter in ADAPTERS}
        traffic, seen, killed = crash(database, server, chance)
        for adapter in ADAPTERS:
            own = [one for one in traffic if one.adapter == adapter]
            answered = [moment for one in own for moment in one.answered]
            prompt = answered[0][1]
            after = ledger(database, adapter)
            requests, prompts, completions = (a - b for a, b in zip(after, before[adapter], strict=True))
            most = len(answered) + len(own)  # each client had one under way
            assert after[0] >= seen[adapter]
            assert requests <= most
            assert prompts <= most * prompt
            assert completions <= most * TOKENS
            if seconds is not None:
                due = sum(when <= killed - seconds for when, _ in answered)
                assert requests >= due
                assert prompts >= due * prompt
                assert completions >= due * TOKENS * (adapter != "topic")


def test_a_kill_loses_only_the_end(tmp_path: Path) -> None:
    check(tmp_path / "store.db", 1, None)


@pytest.mark.soak
def test_a_kill_loses_at_most_a_second(tmp_path: Path) -> None:
    """By the clock: on a machine that does nothing else."""
    check(tmp_path / "store.db", 20, 1.0)

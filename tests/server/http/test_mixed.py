"""Many requests at once: each is answered as it is alone (promise 1), by the weights it names (promise 2), whatever
goes on beside it (promise 5)."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
from cdvft.checkpoint import adapter_files

from tests.server.http.harness import Fleet, error_of, events_of
from tests.tiny import random_adapter

PROMPTS = ["a", "the cat sat on the mat", "she ran and he was not good", "no " * 40]


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    if answer.headers["content-type"] == "application/json":
        return answer.json()["choices"][0]["text"]
    return "".join(event["choices"][0]["text"] for event in events_of(answer)[:-1])


def test_mixed_requests_are_answered_as_alone(decoder: Fleet) -> None:
    """Base and two adapters, greedy and sampled, streams and whole answers, classifiers between them, and bad ones."""
    live = decoder.live
    asks: dict[Any, Callable[[], Any]] = {}
    for model in ("tiny-llama", "writer", "poet"):
        for k, prompt in enumerate(PROMPTS):
            fields = {"temperature": 1.2 * (k % 2), "seed": k, "max_tokens": 40, "stream": k > 1}
            asks[model, k] = lambda m=model, p=prompt, f=fields: text_of(live.complete(m, p, **f))
    asks["classes"] = lambda: [row["label"] for row in live.classify("judge", PROMPTS).json()["data"]]
    asks["bad"] = lambda: error_of(live.complete("nobody"))["code"]
    asks["worse"] = lambda: error_of(live.complete("writer", [999]))["code"]
    alone = {key: ask() for key, ask in asks.items()}
    with decoder.unharmed(), ThreadPoolExecutor(16) as threads:
        together = [(key, threads.submit(ask)) for _ in range(4) for key, ask in asks.items()]
        for key, answer in together:
            assert answer.result() == alone[key], key


def test_uploads_moves_and_deletes_beside_streams(decoder: Fleet) -> None:
    """Every answer is that of the digest it says it is."""
    live, info = decoder.live, decoder.base.info
    adapters = [random_adapter(info, seed) for seed in (60, 61, 62)]
    references = {}
    for adapter in adapters:
        live.upload("reference", adapter_files(adapter, info))
        references[adapter.digest] = text_of(live.complete("reference", max_tokens=30))
    assert len(set(references.values())) == 3
    done = threading.Event()
    seen: set[str] = set()

    def ask() -> int:
        count = 0
        while not done.is_set():
            answer = live.complete("churn", max_tokens=30, stream=count % 2 == 0)
            if answer.status_code == 404:
                continue
            assert text_of(answer) == references[answer.headers["x-adapter-digest"]]
            seen.add(answer.headers["x-adapter-digest"])
            count += 1
        return count

    with decoder.unharmed(), ThreadPoolExecutor(4) as threads:
        asking = [threads.submit(ask) for _ in range(4)]
        try:
            for step in range(6):
                for adapter in adapters:
                    assert live.upload("churn", adapter_files(adapter, info)).status_code == 201
                first = live.get("/v1/adapters/churn/versions").json()["data"][-1]["version"]
                for version in (first, first + 1):
                    moved = live.client.put("/v1/adapters/churn/aliases/latest", json={"version": version})
                    assert moved.status_code == 200
                assert live.client.delete("/v1/adapters/churn", params={"version": first + 2}).status_code == 200
                assert live.client.delete("/v1/adapters/churn").status_code == 200, step
        finally:
            done.set()
        assert sum(own.result() for own in asking) > 4
    assert seen <= set(references)

"""Classify calls that name more adapters than the memory holds at once, or than it can ever hold."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from cdvft.backbone import Backbone
from cdvft.checkpoint import adapter_files
from cdvft.methods.vera import Vera
from cdvft.prepared import prepare_adapter

from tests.server.http.harness import Fleet, error_of
from tests.tiny import method_adapter, random_adapter

COUNT = 12  # adapters stored
ROOM = 8  # of them in memory
WAIT = 20.0  # seconds that a call would wait for room


@pytest.fixture
def crowded(tiny_server: Any, llama: Backbone) -> Fleet:
    adapters = [random_adapter(llama.info, seed, "classification") for seed in range(COUNT)]
    sizes = prepare_adapter(adapters[0])
    memory = (1 + ROOM) * sizes.nbytes + ROOM * sizes.head_nbytes  # row 0 is the base's
    fleet: Fleet = tiny_server(adapter_memory=memory, pool_wait_seconds=WAIT)
    for number, adapter in enumerate(adapters):
        fleet.add(f"c{number}", adapter)
    return fleet


def classify(fleet: Fleet, numbers: list[int]) -> httpx.Response:
    return fleet.live.classify([f"c{number}" for number in numbers], ["the cat"] * len(numbers))


def test_calls_of_several_adapters_do_not_wait_for_each_other(crowded: Fleet) -> None:
    """Any two of these calls need more room than there is. Both answer, and as alone."""
    alone = {n: classify(crowded, [n]).json()["data"][0]["score"] for n in range(COUNT)}
    generator = random.Random(0)
    calls = [generator.sample(range(COUNT), 6) for _ in range(24)]
    started = time.monotonic()
    with crowded.unharmed(), ThreadPoolExecutor(4) as threads:
        for numbers, answer in zip(calls, threads.map(lambda own: classify(crowded, own), calls), strict=True):
            assert answer.status_code == 200, answer.text
            scores = [row["score"] for row in answer.json()["data"]]
            assert scores == pytest.approx([alone[n] for n in numbers], abs=1e-5)
    assert time.monotonic() - started < WAIT, "some call waited until it gave up"
    assert crowded.live.gauge("cdvft_adapter_leases") == 0


def test_a_call_that_can_never_fit_is_refused_at_once(crowded: Fleet) -> None:
    assert classify(crowded, list(range(ROOM))).status_code == 200
    budget = crowded.live.config.adapter_memory
    started = time.monotonic()
    for numbers in (list(range(ROOM + 1)), list(range(COUNT))[::-1]):
        refused = classify(crowded, numbers)
        error = error_of(refused)
        assert (refused.status_code, error["code"], error["param"]) == (400, "invalid_request", "model")
        assert f"the {len(numbers)} adapters of this call take " in error["message"]
        assert f"the adapter memory has {budget}; name fewer in one call" in error["message"]
    assert time.monotonic() - started < WAIT
    assert crowded.live.gauge("cdvft_adapter_leases") == 0
    assert classify(crowded, list(range(ROOM))).status_code == 200


def test_an_adapter_larger_than_the_memory(tiny_server: Any, llama: Backbone) -> None:
    """Refused when it is uploaded; stored before the memory was made smaller, it is unavailable at once."""
    adapter = random_adapter(llama.info, 1, "classification")
    prepared = prepare_adapter(adapter)
    needed = 2 * prepared.nbytes + prepared.head_nbytes
    before: Fleet = tiny_server(adapter_memory=needed)
    before.add("large", adapter)
    assert before.live.classify("large").status_code == 200
    after: Fleet = tiny_server(adapter_memory=needed - 1, pool_wait_seconds=WAIT)
    started = time.monotonic()
    refused = after.live.classify("large")
    assert (refused.status_code, error_of(refused)["code"]) == (503, "adapter_unavailable")
    assert f"takes {needed} bytes of adapter memory, this server has {needed - 1}" in error_of(refused)["message"]
    again = after.live.upload("other", adapter_files(adapter, llama.info))
    assert (again.status_code, error_of(again)["code"]) == (413, "too_large")
    assert time.monotonic() - started < WAIT
    assert after.live.complete("tiny-llama").status_code == 200


def test_what_adapters_of_a_bank_share_is_counted_once(tiny_server: Any, llama: Backbone) -> None:
    """Two VeRA adapters of one key fit beside each other exactly; two of different keys do not, and are told so."""
    made = {
        name: method_adapter(
            llama.info, Vera(), 0, seed, labels=["no", "yes"], options={"r": 8, "projection_prng_key": key}
        )
        for name, seed, key in (("c0", 1, 5), ("c1", 2, 5), ("c2", 3, 6))
    }
    sizes = prepare_adapter(made["c0"])
    memory = sizes.shared_nbytes + 3 * sizes.nbytes + 2 * sizes.head_nbytes
    fleet: Fleet = tiny_server(adapter_memory=memory, pool_wait_seconds=WAIT)
    for name, adapter in made.items():
        fleet.add(name, adapter)
    started = time.monotonic()
    assert classify(fleet, [0, 1]).status_code == 200
    refused = classify(fleet, [0, 2])
    assert refused.status_code == 400, refused.text
    assert "name fewer in one call" in error_of(refused)["message"]
    assert classify(fleet, [2]).status_code == 200  # by evicting the others
    assert classify(fleet, [1, 0]).status_code == 200
    assert time.monotonic() - started < WAIT

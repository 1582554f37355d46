"""Merged mode over HTTP: asked for, exact, told truthfully, refused where it cannot be; auto's own choice."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from cdvft_server.engine import CostModel, merge_adapter
from cdvft_server.engine.costs import Line

from tests.server.http.harness import Fleet, error_of, events_of, wait_until
from tests.tiny import random_adapter

MERGED = {"x-adapter-mode": "merged"}
FFT = {"x-adapter-mode": "fft"}
PROMPTS = ["a", "the cat sat on the mat", "she ran and he was not good"]


def complete(fleet: Fleet, mode: dict[str, str], model: str = "writer", **fields: Any) -> Any:
    body = {"model": model, "prompt": PROMPTS, "temperature": 0, "max_tokens": 12, **fields}
    answer = fleet.live.post("/v1/completions", body, headers=mode)
    assert answer.status_code == 200, answer.text
    return answer


def test_merged_completions_are_those_of_fft_and_say_so(decoder: Fleet) -> None:
    with decoder.unharmed():
        fft, merged = complete(decoder, FFT), complete(decoder, MERGED)
        assert (fft.headers["x-adapter-mode"], merged.headers["x-adapter-mode"]) == ("fft", "merged")
        assert fft.headers["x-adapter-digest"] == merged.headers["x-adapter-digest"]
        assert fft.json()["choices"] == merged.json()["choices"]
        base = complete(decoder, MERGED, "tiny-llama")
        assert base.headers["x-adapter-mode"] == "base"
        stream = complete(decoder, MERGED, stream=True, prompt="the cat")
        assert stream.headers["x-adapter-mode"] == "merged"
        text = "".join(event["choices"][0]["text"] for event in events_of(stream)[:-1])
        assert text == complete(decoder, FFT, prompt="the cat").json()["choices"][0]["text"]
        chat = {"model": "writer", "messages": [{"role": "user", "content": "a"}], "max_tokens": 3, "temperature": 0}
        answers = [decoder.live.post("/v1/chat/completions", chat, headers=mode) for mode in (FFT, MERGED)]
        assert answers[1].headers["x-adapter-mode"] == "merged"
        assert answers[0].json()["choices"] == answers[1].json()["choices"]
    assert decoder.live.gauge("cdvft_tokens_merged_total") > 0
    assert decoder.live.gauge("cdvft_adapters_merged") >= 1


def test_merged_rows_of_several_adapters_say_it_each(encoder: Fleet) -> None:
    body = {"model": ["topics", "mood", "stars", "mood"], "input": [*PROMPTS, "a"], "truncate": True}
    fft = encoder.live.post("/v1/classify", body, headers=FFT).json()["data"]
    merged = encoder.live.post("/v1/classify", body, headers=MERGED).json()["data"]
    encoder.live.wait_until_idle()
    assert [row["mode"] for row in fft] == ["fft"] * 4
    assert [row["mode"] for row in merged] == ["merged"] * 4
    for one, other in zip(fft, merged, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
    one = encoder.live.post("/v1/classify", {"model": "mood", "input": "a"}, headers=MERGED)
    assert one.headers["x-adapter-mode"] == "merged"


def test_many_at_once_wait_for_one_merging(tiny_server: Any) -> None:
    fleet = tiny_server()
    fleet.add("new", random_adapter(fleet.base.info, 71))
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(complete, fleet, MERGED, "new") for _ in range(8)]
        answers = [future.result().json()["choices"] for future in asked]
    assert all(answer == answers[0] for answer in answers)
    assert fleet.live.gauge("cdvft_mergings_total") == 1
    fleet.live.wait_until_idle()


def test_what_cannot_be_merged_here_is_refused_with_the_sizes(tiny_server: Any) -> None:
    fleet = tiny_server(merged_memory=1000)
    fleet.add("writer", random_adapter(fleet.base.info, 1))
    answer = fleet.live.post("/v1/completions", {"model": "writer", "prompt": "a"}, headers=MERGED)
    assert answer.status_code == 400
    error = error_of(answer)
    assert (error["code"], error["param"]) == ("unsupported_mode", "x-adapter-mode")
    assert "--merged-memory" in error["message"]
    assert "1000" in error["message"]
    assert complete(fleet, {"x-adapter-mode": "auto"}).headers["x-adapter-mode"] == "fft"
    fleet.live.wait_until_idle()


@pytest.mark.parametrize("memory", [None, 0])
def test_a_server_whose_mode_is_merged_merges_what_fits(tiny_server: Any, memory: int | None) -> None:
    fleet = tiny_server(mode="merged", merged_memory=memory)
    fleet.add("writer", random_adapter(fleet.base.info, 1))
    answer = complete(fleet, {})
    assert answer.headers["x-adapter-mode"] == ("fft" if memory == 0 else "merged")
    assert complete(fleet, FFT).headers["x-adapter-mode"] == "fft"
    assert complete(fleet, FFT).json()["choices"] == answer.json()["choices"]


def test_auto_merges_what_is_hot_and_uses_it_where_it_pays(tiny_server: Any) -> None:
    """With costs by which merging pays from 20 tokens on; what the machine's own say is in `make bench`."""
    fleet = tiny_server()
    fleet.add("writer", random_adapter(fleet.base.info, 1))
    sites = fleet.base.info.sites.values()
    shapes = {(site.d_out, site.d_in) for site in sites}
    engine, lease = fleet.live.service._parts.engine, fleet.adapters["writer"]
    count = len(lease.spec.sites)
    flops = sum(lease.method.flops(site, spec) for site, spec in lease.spec.sites.items())
    products = {shape: Line(20.0 / count, 1.0) for shape in shapes}
    engine.costs = CostModel(products, dict.fromkeys(shapes, 1.0), {"cdvft": 1 / flops})
    assert engine.costs.least_tokens("cdvft", flops, lease.spec.sites) == pytest.approx(20)
    long, short = [[7] * 100] * 16, [[7] * 5]
    first = complete(fleet, {}, prompt=long)
    assert first.headers["x-adapter-mode"] == "fft"

    def mode_after_asking() -> str:
        return str(complete(fleet, {}, prompt=long).headers["x-adapter-mode"])

    wait_until(lambda: mode_after_asking() == "merged")
    assert complete(fleet, {}, prompt=short).headers["x-adapter-mode"] == "fft"
    assert complete(fleet, {}, prompt=long).json()["choices"] == first.json()["choices"]
    fleet.live.wait_until_idle()


def test_a_deleted_adapters_merged_weights_go(tiny_server: Any) -> None:
    fleet = tiny_server()
    fleet.add("writer", random_adapter(fleet.base.info, 1))
    complete(fleet, MERGED)
    assert fleet.live.gauge("cdvft_merged_bytes_used") > 0
    assert fleet.live.client.delete("/v1/adapters/writer").status_code == 200
    assert fleet.live.gauge("cdvft_merged_bytes_used") == 0


def test_merging_that_has_no_room_is_not_begun(tiny_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One adapter's merged weights are in use, and fill the memory: another's are not even computed."""
    fleet = tiny_server(merged_memory=20_000)
    for name, seed in (("one", 1), ("two", 2)):
        fleet.add(name, random_adapter(fleet.base.info, seed))
    complete(fleet, MERGED, "one")
    pool = fleet.live.service._parts.merged
    in_use = pool.acquire(f"default/{fleet.adapters['one'].digest}")
    monkeypatch.setattr("cdvft_server.service.merging.merge_adapter", lambda *_: pytest.fail("merged for nothing"))
    answer = fleet.live.post("/v1/completions", {"model": "two", "prompt": "a"}, headers=MERGED)
    assert (answer.status_code, error_of(answer)["code"]) == (503, "overloaded")
    assert answer.headers["retry-after"]
    in_use.release()
    fleet.live.wait_until_idle()


def test_adapters_that_do_not_fit_merged_together_are_refused_together(tiny_server: Any) -> None:
    fleet = tiny_server(merged_memory=20_000)
    for name, seed in (("one", 1), ("two", 2)):
        fleet.add(name, random_adapter(fleet.base.info, seed, "classification"))
    body = {"model": ["one", "two"], "input": ["a", "b"]}
    error = error_of(fleet.live.post("/v1/classify", body, headers=MERGED))
    assert error["code"] == "unsupported_mode"
    assert "one@1, two@1" in error["message"]
    one = {"model": ["one", "one"], "input": ["a", "b"]}
    assert fleet.live.post("/v1/classify", one, headers=MERGED).status_code == 200


def test_a_merging_that_fails_is_told_and_tried_again(tiny_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = tiny_server()
    fleet.add("writer", random_adapter(fleet.base.info, 1))
    with monkeypatch.context() as broken:
        broken.setattr("cdvft_server.service.merging.merge_adapter", lambda *_: 1 // 0)
        for _ in range(2):
            answer = fleet.live.post("/v1/completions", {"model": "writer", "prompt": "a"}, headers=MERGED)
            assert answer.status_code == 500
    assert complete(fleet, MERGED).headers["x-adapter-mode"] == "merged"
    fleet.live.wait_until_idle()


def test_an_adapter_that_is_deleted_while_it_is_merged_leaves_nothing(tiny_server: Any, monkeypatch: Any) -> None:
    fleet = tiny_server(delete_wait_seconds=0)
    fleet.add("writer", random_adapter(fleet.base.info, 1))
    begun, go = threading.Event(), threading.Event()

    def slow(backbone: Any, adapter: Any) -> Any:
        begun.set()
        assert go.wait(60)
        return merge_adapter(backbone, adapter)

    monkeypatch.setattr("cdvft_server.service.merging.merge_adapter", slow)
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(complete, fleet, MERGED)
        assert begun.wait(60)
        assert fleet.live.client.delete("/v1/adapters/writer").status_code == 200
        go.set()
        asked.exception()  # it may have been answered, or have found the adapter gone
    wait_until(lambda: fleet.live.gauge("cdvft_merged_bytes_used") == 0)
    fleet.live.wait_until_idle()


def test_merged_weights_that_are_evicted_are_made_again(tiny_server: Any) -> None:
    """Room for one adapter: two in turn, each exact each time."""
    fleet = tiny_server(merged_memory=20_000)
    adapters = [random_adapter(fleet.base.info, seed) for seed in (1, 2)]
    for name, adapter in zip(("one", "two"), adapters, strict=True):
        fleet.add(name, adapter)
    needed = sum(site.d_out * site.d_in * 4 for site in adapters[0].spec.sites)
    assert needed <= 20_000 < 2 * needed
    expected = {name: complete(fleet, FFT, name).json()["choices"] for name in ("one", "two")}
    for name in ("one", "two", "one", "two"):
        answer = complete(fleet, MERGED, name)
        assert answer.headers["x-adapter-mode"] == "merged"
        assert answer.json()["choices"] == expected[name]
    assert fleet.live.gauge("cdvft_merged_evicted_total") == 3

"""`/metrics`: true numbers, bounded labels, and the names that routers in front of vLLM read."""

import time
from collections import defaultdict
from contextlib import ExitStack

import pytest
from cdvft.backbone import Backbone
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.server.http.harness import Fleet, Live, braked, wait_until
from tests.tiny import random_adapter

HISTOGRAMS = (
    *("queue_seconds", "first_token_seconds", "token_seconds", "inference_seconds"),
    *("step_seconds", "batch_tokens", "batch_requests"),
)


def families(live: Live) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(live.get("/metrics").text)}


def samples(live: Live) -> dict[str, float]:
    """The samples without labels."""
    return {s.name: s.value for family in families(live).values() for s in family.samples if not s.labels}


def grown(live: Live, before: dict[str, float]) -> dict[str, float]:
    return {name: value - before[name] for name, value in samples(live).items()}


def test_histograms_count_requests_tokens_and_batches(decoder: Fleet) -> None:
    live = decoder.live
    live.wait_until_idle()
    before = samples(live)
    live.complete("writer", ["a", "b"], n=2, max_tokens=5, ignore_eos=True)
    live.classify("judge", ["the cat"] * 3)
    wait_until(lambda: grown(live, before)["cdvft_batch_tokens_sum"] == grown(live, before)["cdvft_tokens_total"])
    found = grown(live, before)
    assert {name: found[f"cdvft_{name}_count"] for name in HISTOGRAMS[:4]} == {
        "queue_seconds": 7, "first_token_seconds": 4, "token_seconds": 16, "inference_seconds": 7
    }  # fmt: skip
    assert {found[f"cdvft_{name}_count"] for name in HISTOGRAMS[4:]} == {found["cdvft_batches_total"]}
    assert found["cdvft_batch_tokens_sum"] == found["cdvft_tokens_total"]
    assert found["cdvft_completion_tokens_total"] == found["cdvft_generated_tokens_total"] == 20
    assert found["cdvft_prompt_tokens_total"] > 0
    for name in HISTOGRAMS:
        buckets = [s.value for s in families(live)[f"cdvft_{name}"].samples if s.name.endswith("_bucket")]
        assert buckets == sorted(buckets)
        assert buckets[-1] == samples(live)[f"cdvft_{name}_count"]


def test_no_label_grows_with_what_is_sent(decoder: Fleet) -> None:
    """Methods, paths, names, tenants: however many are tried, there are no more series."""
    live = decoder.live

    def series() -> dict[str, int]:
        count: dict[str, int] = defaultdict(int)
        for family in families(live).values():
            for sample in family.samples:
                count[sample.name] += 1
        return count

    def send(k: int) -> None:
        live.client.request(f"BREW{k}", f"/tea{k}")
        live.client.request(f"brew{k}", f"/v1/models/m{k}")
        live.get(f"/v1/models/m{k}", headers={"x-request-id": f"id-{k}", "user-agent": f"agent-{k}"})
        live.get(f"/{k}")
        live.complete(f"nobody{k}")
        live.get("/v1/usage", params={"tenant": f"t{k}"})

    send(0)
    before = series()
    for k in range(1, 10):
        send(k)
    assert series() == before
    text = live.get("/metrics").text
    assert 'method="other",route="(none)",status="404"' in text
    assert not any(word in text for word in ("BREW", "brew", "tea", "nobody", "writer"))


@pytest.fixture
def public(llama: Backbone, tiny_server) -> Fleet:
    fleet = tiny_server(max_batch_tokens=2)  # two requests at a time
    for seed, (name, shown) in enumerate({"known": "true", "hidden": "false", "later": "true"}.items()):
        fleet.add(name, random_adapter(llama.info, seed), public=shown)
    return fleet


def test_what_routers_read(public: Fleet) -> None:
    live = public.live

    def view() -> dict[str, dict[str, str]]:
        return {name: family.samples[0].labels for name, family in families(live).items() if name.startswith("vllm:")}

    def value(name: str) -> float:
        return families(live)[f"vllm:{name}"].samples[0].value

    idle = {"max_lora": "2", "running_lora_adapters": "", "waiting_lora_adapters": ""}
    model = {"model_name": "tiny-llama"}
    assert view() == {
        "vllm:num_requests_waiting": model, "vllm:num_requests_running": model, "vllm:kv_cache_usage_perc": model,
        "vllm:lora_requests_info": idle,
    }  # fmt: skip
    assert value("lora_requests_info") == pytest.approx(time.time(), abs=600)
    body = {"prompt": [5], "stream": True, "ignore_eos": True, "max_tokens": 20}
    with braked(live) as step, ExitStack() as streams:
        for name in ("known", "hidden", "later"):
            streams.enter_context(live.client.stream("POST", "/v1/completions", json={**body, "model": name}))
        step()
        shown = view()["vllm:lora_requests_info"]
        assert shown == {"max_lora": "2", "running_lora_adapters": "known", "waiting_lora_adapters": "later"}
        assert (value("num_requests_running"), value("num_requests_waiting")) == (2, 1)
        assert 0 < value("kv_cache_usage_perc") < 1
    live.wait_until_idle()
    wait_until(lambda: view()["vllm:lora_requests_info"] == idle)

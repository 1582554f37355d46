"""`/v1/usage`: what is answered as `usage` is what the ledger has, whatever way a call ends."""

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from cdvft.backbone import Backbone
from cdvft_server.exceptions import StoreUnavailable
from cdvft_server.store import UsageQuery

from tests.server.http.conftest import config_for
from tests.server.http.harness import Fleet, Live, braked, error_of, events_of, wait_until
from tests.tiny import random_adapter

KINDS = ("prompt_tokens", "completion_tokens")
AMOUNTS = ("requests", "failed", "cancelled", "total_tokens", "seconds", *KINDS)
METRICS = [f"cdvft_{name}_total" for name in ("generated_tokens", *KINDS)]


@pytest.fixture(scope="module")
def fleet(llama: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """writer and poet (lm), judge (yes/no), grader (regression)."""
    folder = tmp_path_factory.mktemp("usage")
    with Live(config_for(llama, folder)) as live:
        own = Fleet(live, llama, folder)
        for seed, (name, task) in enumerate(
            {"writer": "lm", "poet": "lm", "judge": "classification", "grader": "regression"}.items()
        ):
            own.add(name, random_adapter(llama.info, seed, task))  # type: ignore[arg-type]
        yield own


def used(live: Live, **query: Any) -> list[dict[str, Any]]:
    answer = live.get("/v1/usage", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


def by_adapter(live: Live) -> dict[str, dict[str, Any]]:
    return {entry["adapter"]: entry for entry in used(live, limit=100)}


class Since:
    """What was used from here on, by adapter, and what a metric grew by."""

    def __init__(self, live: Live) -> None:
        live.wait_until_idle()
        self.live, self.before = live, by_adapter(live)
        self._gauges = {name: live.gauge(name) for name in METRICS}

    def used(self) -> dict[str, Counter[str]]:
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for adapter, entry in by_adapter(self.live).items():
            own = Counter({name: value for name, value in entry.items() if name in AMOUNTS})
            own.subtract({name: self.before.get(adapter, {}).get(name, 0) for name in AMOUNTS})
            if own["requests"] or own["seconds"]:
                found[adapter] = own
        return found

    def metric(self, name: str) -> float:
        return self.live.gauge(name) - self._gauges[name]


def counted(entry: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(entry[kind] for kind in ("requests", *KINDS))


def test_every_answer_is_in_the_ledger_as_it_says(fleet: Fleet) -> None:
    live, since = fleet.live, Since(fleet.live)
    expected: dict[str, Counter[str]] = {}

    def note(adapter: str, usage: dict[str, int]) -> None:
        expected.setdefault(adapter, Counter())["requests"] += 1
        expected[adapter].update({kind: usage[kind] for kind in KINDS})

    bodies: list[dict[str, Any]] = [
        {"prompt": "the cat", "max_tokens": 3},
        {"prompt": ["the cat", "a dog"], "n": 3, "seed": 1, "max_tokens": 9},
        {"prompt": "the cat", "max_tokens": 40, "stop": ["e", "a", " "]},
        {"prompt": ["a", "b"], "n": 2, "max_tokens": 40, "stop": ["e"], "seed": 2},
        {"prompt": [7] * 250, "ignore_eos": True},
    ]
    for model in ("tiny-llama", "poet@1"):
        name = model.partition("@")[0]
        for body in bodies:
            note(name, live.complete(model, **body).json()["usage"])
            streamed = {"stream": True, "stream_options": {"include_usage": True}}
            note(name, events_of(live.complete(model, **body, **streamed))[-2]["usage"])
        chat = {"model": model, "messages": [{"role": "user", "content": "the cat"}], "max_tokens": 5, "n": 2}
        note(name, live.post("/v1/chat/completions", chat).json()["usage"])
    answer = live.classify("judge", ["the cat", ["a dog", "runs"]]).json()["usage"]
    note("judge", answer)
    live.complete("nobody")
    live.complete("judge")
    live.complete("writer", max_tokens=10**6)
    found = since.used()
    assert {name: counted(entry) for name, entry in found.items()} == {
        name: (own["requests"], own["prompt_tokens"], own["completion_tokens"]) for name, own in expected.items()
    }
    assert all(entry["failed"] == entry["cancelled"] == 0 for entry in found.values())
    assert all(entry["total_tokens"] == sum(entry[kind] for kind in KINDS) for entry in found.values())


def test_rows_of_a_mixed_call_are_each_their_adapters(fleet: Fleet) -> None:
    live, texts = fleet.live, ["the cat", "a", "a dog runs", "the"]
    alone = [live.classify("judge", text).json()["usage"]["prompt_tokens"] for text in texts]
    since = Since(live)
    usage = live.classify(["judge", "grader", "grader", "judge"], texts).json()["usage"]
    found = since.used()
    assert counted(found["judge"]) == (1, alone[0] + alone[3], 0)
    assert counted(found["grader"]) == (1, alone[1] + alone[2], 0)
    assert usage["prompt_tokens"] == sum(alone)


def test_seconds_are_the_engines(fleet: Fleet) -> None:
    live = fleet.live
    live.complete("writer", ["a"] * 4, n=2, max_tokens=20, ignore_eos=True)
    live.classify("judge", ["the cat"] * 20)
    steps = live.service._parts.engine.meters.step_seconds

    def off() -> float:
        return sum(entry["seconds"] for entry in used(live)) - steps.read().total

    wait_until(lambda: abs(off()) < 1e-4)
    assert live.gauge("cdvft_inference_seconds_used_total") == pytest.approx(steps.read().total, abs=1e-4)


def test_a_stream_that_is_left_counts_what_was_generated(fleet: Fleet) -> None:
    """All that the engine generated is counted, also what came after the client had gone."""
    live, since = fleet.live, Since(fleet.live)
    body = {"model": "writer", "prompt": ["a", "b"], "n": 4, "stream": True, "ignore_eos": True, "max_tokens": 250}
    with live.client.stream("POST", "/v1/completions", json=body) as answer:
        next(answer.iter_lines())
    wait_until(lambda: since.used()["writer"]["cancelled"])
    entry = since.used()["writer"]
    assert (entry["requests"], entry["cancelled"], entry["failed"]) == (1, 1, 0)
    assert entry["completion_tokens"] == since.metric("cdvft_generated_tokens_total")
    assert entry["prompt_tokens"] == since.metric("cdvft_prompt_tokens_total") > 0


def test_a_stream_is_counted_while_it_runs(fleet: Fleet) -> None:
    """A kill must not lose the beginning of a long answer: it is in the store before the answer ends."""
    live, since = fleet.live, Since(fleet.live)
    body = {"model": "writer", "prompt": [[5], [6]], "stream": True, "ignore_eos": True, "max_tokens": 50}
    with braked(live) as step, live.client.stream("POST", "/v1/completions", json=body):
        for count in (1, 2):
            step()  # a token of both
            wait_until(lambda count=count: since.used()["writer"]["completion_tokens"] == 2 * count)
        assert counted(since.used()["writer"]) == (1, 2, 4)
        in_store = live.service._parts.store.usage.report(UsageQuery("default", adapter="writer"), 10)
        assert in_store[0].amounts.completion_tokens == by_adapter(live)["writer"]["completion_tokens"]
    wait_until(lambda: since.used()["writer"]["cancelled"])


def test_a_request_that_fails_is_told_from_the_others(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    live, since = fleet.live, Since(fleet.live)
    engine = live.service._parts.engine
    with monkeypatch.context() as patch:
        patch.setattr(engine._core, "_sample", lambda sequences, logits: 1 / 0)
        assert live.complete("poet").status_code == 500
    assert live.complete("writer").status_code == 200
    found = since.used()
    assert (found["poet"]["requests"], found["poet"]["failed"], found["poet"]["completion_tokens"]) == (1, 1, 0)
    assert found["poet"]["prompt_tokens"] > 0
    assert found["writer"]["failed"] == 0


def test_usage_is_kept_while_the_store_is_away(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    live, since = fleet.live, Since(fleet.live)
    store = live.service._parts.store.usage
    add = store.add

    def away(*args: Any) -> None:
        """As a connection that breaks after the commit: it was written, and nobody knows."""
        add(*args)
        raise StoreUnavailable("the store is away")

    with monkeypatch.context() as patch:
        patch.setattr(store, "add", away)
        first = live.complete("writer").json()["usage"]
        assert error_of(live.get("/v1/usage"))["code"] == "store_unavailable"
        second = live.complete("writer").json()["usage"]
        assert live.get("/v1/usage").status_code == 503
    assert counted(since.used()["writer"]) == (2, *(first[kind] + second[kind] for kind in KINDS))


def test_a_stop_writes_what_is_unwritten_and_deleted_names_stay(llama: Backbone, tmp_path: Path) -> None:
    with Live(config_for(llama, tmp_path)) as live:
        Fleet(live, llama, tmp_path).add("writer", random_adapter(llama.info, 1))
        usage = live.complete("writer").json()["usage"]
        live.client.delete("/v1/adapters/writer")
    with Live(config_for(llama, tmp_path)) as live:
        (entry,) = used(live, group_by="version")
    assert counted(entry) == (1, *(usage[kind] for kind in KINDS))
    assert (entry["adapter"], entry["version"], entry["tenant"]) == ("writer", 1, "default")


def test_groups_pages_and_csv(fleet: Fleet) -> None:
    live = fleet.live
    for model in ("tiny-llama", "writer", "poet"):
        live.complete(model, max_tokens=2)
    live.classify("judge")
    whole = used(live, group_by="day,version", limit=100)
    paged: list[dict[str, Any]] = []
    query: dict[str, Any] = {"group_by": "version,day", "limit": 2}
    while True:
        page = live.get("/v1/usage", params=query).json()
        paged += page["data"]
        if not page["has_more"]:
            break
        query["after"] = page["last_id"]
    assert [entry["id"] for entry in paged] == [entry["id"] for entry in whole]
    assert {("tiny-llama", None), ("writer", 1), ("poet", 1), ("judge", 1)} <= {
        (entry["adapter"], entry["version"]) for entry in whole
    }
    assert {entry["end"] - entry["start"] for entry in whole} == {86400}
    for options in ({"params": {"format": "csv"}}, {"headers": {"accept": "text/csv"}}):
        answer = live.get("/v1/usage", **options)
        assert answer.headers["content-type"].startswith("text/csv")
        rows = list(csv.DictReader(io.StringIO(answer.text, newline="")))
        assert answer.text.count("\r\n") == len(rows) + 1
        assert {row["adapter"]: int(row["requests"]) for row in rows} == {
            name: entry["requests"] for name, entry in by_adapter(live).items()
        }
    day = live.get("/v1/usage", params={"format": "csv", "group_by": "day", "limit": 1}).text.splitlines()
    assert len(day) == 2
    assert day[1].split(",")[0].endswith("T00:00:00Z")


@pytest.mark.parametrize(
    "query",
    [{"start": "2026-11-29T14:00:00+02:00"}, {"start": 0}, {"end": "9999-12-31"}, {"start": 1, "adapter": "writer"}],
)
def test_ranges_that_have_it(decoder: Fleet, query: dict[str, Any]) -> None:
    decoder.live.complete("writer")
    assert "writer" in {entry["adapter"] for entry in used(decoder.live, **query, limit=100)}


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"start": "yesterday"}, "start"),
        ({"end": -1}, "end"),
        ({"end": "99999999999999999999999"}, "end"),
        ({"start": "0001-01-01"}, "start"),
        ({"group_by": "colour"}, "group_by"),
        ({"group_by": "hour,day"}, "group_by"),
        ({"group_by": ""}, "group_by"),
        ({"limit": 0}, "limit"),
        ({"limit": 101}, "limit"),
        ({"after": "x", "group_by": "hour"}, "after"),
        ({"after": "x", "group_by": "version"}, "after"),
        *(({name: "a\0b"}, name) for name in ("after", "adapter", "tenant")),
        ({"format": "xml"}, "format"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_what_is_wrong_is_named(decoder: Fleet, query: dict[str, Any], param: str) -> None:
    for more in ({}, {"headers": {"accept": "text/csv"}}):
        answer = decoder.live.get("/v1/usage", params=query, **more)
        assert answer.status_code == 400
        assert error_of(answer)["param"] == param


def test_another_tenants_usage_is_not_the_callers_to_see(decoder: Fleet) -> None:
    for tenant in ("other", "*"):
        answer = decoder.live.get("/v1/usage", params={"tenant": tenant})
        assert (answer.status_code, error_of(answer)["code"]) == (403, "forbidden")
    assert decoder.live.get("/v1/usage", params={"tenant": "default"}).status_code == 200


def test_what_ends_leaves_the_ledgers_hands(fleet: Fleet) -> None:
    live = fleet.live
    live.complete("writer", ["a"] * 4, max_tokens=3)
    live.complete("poet", stream=True)
    live.wait_until_idle()
    wait_until(lambda: live.get("/health") and not live.service._parts.ledger._open)

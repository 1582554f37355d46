"""An exception in any stage of a call: it alone gets an error, the calls beside it get what they get alone."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import torch
from cdvft.backbone import Backbone
from cdvft.checkpoint import AdapterFiles, adapter_files
from cdvft_server.engine.batch import Batch
from cdvft_server.engine.scheduler import Scheduler
from cdvft_server.service import residency, uploads

from tests.server.http.conftest import config_for
from tests.server.http.harness import Fleet, Live, error_of
from tests.tiny import random_adapter

VICTIM = "victim"
CALLS = ("writer", "poet", VICTIM, "writer", "tiny-llama", VICTIM, "poet", "tiny-llama")


def refuse_memory(*_: Any) -> None:
    torch.empty(1 << 62, dtype=torch.uint8)  # more than any machine has: the allocator's own error


def fail(*_: Any) -> None:
    raise ZeroDivisionError("secret detail")


FAULTS = {"a fault": (fail, 500, "internal_error"), "no memory": (refuse_memory, 503, "overloaded")}
Fault = tuple[Callable[..., None], int, str]


@pytest.fixture(params=FAULTS)
def fault(request: pytest.FixtureRequest) -> Fault:
    return FAULTS[request.param]


@pytest.fixture(scope="module")
def server(llama: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("faults")
    with Live(config_for(llama, folder)) as live:
        own = Fleet(live, llama, folder)
        for seed, name in enumerate(("writer", "poet")):
            own.add(name, random_adapter(llama.info, seed))
        yield own


@pytest.fixture
def fleet(server: Fleet) -> Iterator[Fleet]:
    """With a victim that is not yet on the device; others are unharmed by whatever happens in the test."""
    with server.unharmed():
        assert server.live.upload(VICTIM, files(server)).status_code == 201
        yield server
        server.live.client.delete(f"/v1/adapters/{VICTIM}")


def files(fleet: Fleet) -> AdapterFiles:
    return adapter_files(random_adapter(fleet.base.info, 99), fleet.base.info)


def together(fleet: Fleet) -> list[httpx.Response]:
    with ThreadPoolExecutor(len(CALLS)) as threads:
        return list(threads.map(lambda model: fleet.live.complete(model, max_tokens=12), CALLS))


def check(fleet: Fleet, fault: Fault, patch: pytest.MonkeyPatch, inject: Callable[[pytest.MonkeyPatch], None]) -> None:
    right = {name: fleet.live.complete(name, max_tokens=12).json()["choices"] for name in set(CALLS) - {VICTIM}}
    with patch.context() as patched:
        inject(patched)
        for model, answer in zip(CALLS, together(fleet), strict=True):
            if model == VICTIM:
                assert (answer.status_code, error_of(answer)["code"]) == fault[1:]
                assert "secret" not in answer.text
            else:
                assert answer.status_code == 200, answer.text
                assert answer.json()["choices"] == right[model]
                assert answer.headers["x-adapter"] == model
    assert fleet.live.complete(VICTIM).status_code == 200


def test_in_the_forward_pass(fleet: Fleet, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = fleet.live.get(f"/v1/adapters/{VICTIM}").json()["digest"]
    runner = fleet.live.service._parts.engine._core.runner
    run = runner.run

    def injected(batch: Batch, *more: Any) -> Any:
        leases = [segment.sequence.request.lease for segment in batch.segments]
        if any(lease is not None and lease.digest.endswith(digest) for lease in leases):
            fault[0]()
        return run(batch, *more)

    check(fleet, fault, monkeypatch, lambda patch: patch.setattr(runner, "run", injected))


def test_in_the_load(fleet: Fleet, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody who waits for that adapter is told; the next to ask loads it."""
    digest = fleet.live.get(f"/v1/adapters/{VICTIM}").json()["digest"]
    prepare = residency.prepare_adapter

    def injected(adapter: Any) -> Any:
        if adapter.digest == digest:
            fault[0]()
        return prepare(adapter)

    check(fleet, fault, monkeypatch, lambda patch: patch.setattr(residency, "prepare_adapter", injected))


def test_in_the_tokenizer(fleet: Fleet, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    encoding = fleet.live.service.generator._encoding
    prompts = encoding.prompts

    async def injected(texts: Any) -> Any:
        if texts == ["victim's"]:
            fault[0]()
        return await prompts(texts)

    monkeypatch.setattr(encoding, "prompts", injected)
    answer = fleet.live.complete(VICTIM, "victim's")
    assert (answer.status_code, error_of(answer)["code"]) == fault[1:]
    assert fleet.live.complete(VICTIM).status_code == 200


def test_in_an_upload(fleet: Fleet, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it is stored."""
    with monkeypatch.context() as patch:
        patch.setattr(uploads, "probe_sites", lambda *_: fault[0]())
        answer = fleet.live.upload("new", files(fleet))
        assert (answer.status_code, error_of(answer)["code"]) == fault[1:]
    assert fleet.live.get("/v1/adapters/new").status_code == 404


def test_in_the_engine_itself(fleet: Fleet, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in the engine then fails, every call with an answer; the next is served."""
    with monkeypatch.context() as patch:
        patch.setattr(Scheduler, "schedule", lambda _: fault[0]())
        for answer in together(fleet):
            assert (answer.status_code, error_of(answer)["code"]) == fault[1:]
    assert fleet.live.complete(VICTIM).status_code == 200

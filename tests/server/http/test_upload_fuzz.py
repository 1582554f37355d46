"""Whatever is uploaded is answered in time, with a version or an error of the client's; nothing leaks."""

import asyncio
import gc
import os
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest
from cdvft.backbone import Backbone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.server.http.conftest import config_for
from tests.server.http.harness import Live, error_of
from tests.server.upload_cases import Cases

SHORT, SOAK, WARM_UP = 400, 100_000, 5_000
DEADLINE = 60.0  # seconds for one case: a bound for a hang, not a pace


class Fuzzed:
    """The real app of a running server, asked without a socket."""

    def __init__(self, live: Live, base: Backbone) -> None:
        self.live, self._cases = live, Cases(base)
        transport = httpx.ASGITransport(live.server.config.app)  # type: ignore[arg-type]
        self._client = httpx.AsyncClient(transport=transport, base_url="http://localhost")
        self.answers: Counter[int] = Counter()
        self.slowest = (0.0, -1)

    def upload(self, seed: int) -> httpx.Response:
        content, headers = self._cases.case(seed)
        sent = self._client.post("/v1/adapters", content=content, headers=headers)
        return asyncio.run_coroutine_threadsafe(sent, self.live.loop).result(DEADLINE)

    def check(self, seed: int) -> None:
        begun = time.monotonic()
        answer = self.upload(seed)
        self.slowest = max(self.slowest, (time.monotonic() - begun, seed))
        self.answers[answer.status_code] += 1
        assert answer.status_code in (200, 201) or 400 <= answer.status_code < 500, (seed, answer.text)
        if answer.status_code >= 400:
            error_of(answer)


@pytest.fixture(scope="module")
def fuzzed(llama: Backbone, tmp_path_factory: pytest.TempPathFactory) -> object:
    with Live(config_for(llama, tmp_path_factory.mktemp("fuzz"))) as live:
        yield Fuzzed(live, llama)
        live.wait_until_idle()


@settings(max_examples=SHORT, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_any_upload_is_answered(fuzzed: Fuzzed, seed: int) -> None:
    fuzzed.check(seed)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.soak
def test_a_hundred_thousand_uploads_leak_nothing(fuzzed: Fuzzed) -> None:
    for seed in range(WARM_UP):
        fuzzed.check(seed)
    gc.collect()
    memory, files = resident(), open_files()
    for seed in range(WARM_UP, SOAK):
        fuzzed.check(seed)
    gc.collect()
    print(f"{SOAK} uploads: {dict(fuzzed.answers)}; slowest {fuzzed.slowest[0]:.2f} s (seed {fuzzed.slowest[1]})")
    print(f"resident memory {memory >> 20} -> {resident() >> 20} MiB, descriptors {files} -> {open_files()}")
    assert open_files() <= files + 4
    assert resident() < memory * 1.1 + (32 << 20)

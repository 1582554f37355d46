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
from cdvft.checkpoint import adapter_files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.server.http.conftest import config_for
from tests.server.http.harness import Live, error_of
from tests.server.upload_cases import Cases
from tests.tiny import random_adapter

SHORT, SOAK, WARM_UP = 400, 100_000, 5_000
TOGETHER, PAUSE = 16, 1_000  # of the long form: uploads at a time, and between two looks at the server
DEADLINE = 60.0  # seconds for what is sent at a time: a bound for a hang, not a pace


class Fuzzed:
    """The real app of a running server, asked without a socket."""

    def __init__(self, live: Live, base: Backbone) -> None:
        self.live, self._cases = live, Cases(base)
        transport = httpx.ASGITransport(live.server.config.app)  # type: ignore[arg-type]
        self._client = httpx.AsyncClient(transport=transport, base_url="http://localhost")
        self.answers: Counter[int] = Counter()
        self.slowest = (0.0, -1)
        good = adapter_files(random_adapter(base.info, 99), base.info)
        assert live.upload("good", good).status_code == 201
        self._good = self._ask_good()

    def check(self, *seeds: int) -> None:
        """All at a time."""
        bodies = [(seed, *self._cases.case(seed)) for seed in seeds]

        async def send() -> list[httpx.Response]:
            return await asyncio.gather(*(self._send(*own) for own in bodies))

        answers = asyncio.run_coroutine_threadsafe(send(), self.live.loop).result(DEADLINE)
        for seed, answer in zip(seeds, answers, strict=True):
            self.answers[answer.status_code] += 1
            assert answer.status_code in (200, 201) or 400 <= answer.status_code < 500, (seed, answer.text)
            if answer.status_code >= 400:
                error_of(answer)

    def check_good(self) -> None:
        """What has nothing to do with it is answered as before."""
        assert self._ask_good() == self._good

    def _ask_good(self) -> tuple[object, str]:
        answer = self.live.complete("good")
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"], answer.headers["x-adapter-digest"]

    async def _send(self, seed: int, content: bytes, headers: dict[str, str]) -> httpx.Response:
        begun = time.monotonic()
        answer = await self._client.post("/v1/adapters", content=content, headers=headers)
        self.slowest = max(self.slowest, (time.monotonic() - begun, seed))
        return answer


@pytest.fixture(scope="module")
def fuzzed(llama: Backbone, tmp_path_factory: pytest.TempPathFactory) -> object:
    with Live(config_for(llama, tmp_path_factory.mktemp("fuzz"))) as live:
        made = Fuzzed(live, llama)
        yield made
        made.check_good()
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
@pytest.mark.timeout(7200)
def test_a_hundred_thousand_uploads_leak_nothing(fuzzed: Fuzzed) -> None:
    def upload(first: int, last: int) -> None:
        for seed in range(first, last, TOGETHER):
            fuzzed.check(*range(seed, min(seed + TOGETHER, last)))
            if seed // PAUSE != (seed + TOGETHER) // PAUSE:
                fuzzed.check_good()

    upload(0, WARM_UP)
    gc.collect()
    memory, files = resident(), open_files()
    upload(WARM_UP, SOAK)
    gc.collect()
    print(f"{SOAK} uploads: {dict(fuzzed.answers)}; slowest {fuzzed.slowest[0]:.2f} s (seed {fuzzed.slowest[1]})")
    print(f"resident memory {memory >> 20} -> {resident() >> 20} MiB, descriptors {files} -> {open_files()}")
    assert fuzzed.answers.total() >= SOAK
    assert open_files() <= files + 4
    assert resident() < memory * 1.1 + (32 << 20)

"""What a computing process asks of the C library and of OpenMP, each in a process of its own."""

import gc
import platform
import subprocess
import sys

import pytest
from cdvft_server.process import settled_heap

ACCEPTED = "from cdvft_server.process import tune_process; print(tune_process())"

THREADS = """
import asyncio, os, sys, tempfile, threading
from cdvft_server.process import tune_process
tune_process()
print(os.environ["GOMP_SPINCOUNT"])
import torch
torch.set_num_threads(3)
from cdvft_server.config import ServeConfig
from cdvft_server.service import Service

async def main():
    seen = {}
    with tempfile.TemporaryDirectory() as folder:
        service = await Service.start(ServeConfig(database=f"sqlite:///{folder}/store.db", threads=2))
        engine = service._parts.engine
        schedule = engine._core.scheduler.schedule

        def spy():
            seen["engine"] = torch.get_num_threads()
            return schedule()

        engine._core.scheduler.schedule = spy
        seen["loop"] = torch.get_num_threads()
        seen["worker"] = await service._parts.workers.run(torch.get_num_threads)
        from cdvft_server.engine import Request, SamplingParams
        done = threading.Event()
        params = SamplingParams(1, 0.0, 1.0, 0, 0, frozenset(), True)
        engine.submit([Request("a", [5, 6], lambda event: done.set(), sampling=params)])
        await asyncio.to_thread(done.wait)
        await service.close()
    seen["after"] = torch.get_num_threads()
    print(sorted(seen.items()))

asyncio.run(main())
"""


def run(code: str, *arguments: str) -> list[str]:
    shown = subprocess.run(
        [sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True, timeout=120
    )
    return shown.stdout.split("\n")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")
def test_glibc_takes_every_setting() -> None:
    """It refuses what is out of its range, silently; then memory would be given back and faulted in again."""
    assert run(ACCEPTED)[0] == "True"


def test_only_the_engine_computes_in_parallel() -> None:
    spins, seen, *_ = run(THREADS)
    assert int(spins) > 0
    assert seen == str([("after", 3), ("engine", 2), ("loop", 1), ("worker", 1)])


def test_a_settled_heap_is_passed_over_and_given_back() -> None:
    before = gc.get_freeze_count()
    with settled_heap():
        assert gc.get_freeze_count() > before
    assert gc.get_freeze_count() == 0

"""Two servers for all tests here: a decoder and an encoder, each with a few adapters. Tests add their own names."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cdvft.backbone import Backbone, load_backbone
from cdvft_server.config import ServeConfig

from tests.server.http.harness import Fleet, Live
from tests.tiny import random_adapter, tiny_llama, tiny_roberta

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(str(tiny_llama(tmp_path_factory.mktemp("bases") / "tiny-llama")))


@pytest.fixture(scope="session")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(str(tiny_roberta(tmp_path_factory.mktemp("bases") / "tiny-roberta")))


def config_for(served: Backbone, folder: Path, /, **options: object) -> ServeConfig:
    settings = {"base": str(served.path), "port": 0, "database": f"sqlite:///{folder}/store.db", "drain_seconds": 5}
    return ServeConfig(**{**settings, **options})


@pytest.fixture(scope="session")
def decoder(llama: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Adapters: writer, poet (lm), judge (yes/no), grader (regression)."""
    folder = tmp_path_factory.mktemp("decoder")
    with Live(config_for(llama, folder)) as live:
        fleet = Fleet(live, llama, folder)
        fleet.add("writer", random_adapter(llama.info, 1))
        fleet.add("poet", random_adapter(llama.info, 2))
        fleet.add("judge", random_adapter(llama.info, 3, "classification"))
        fleet.add("grader", random_adapter(llama.info, 4, "regression"))
        yield fleet


@pytest.fixture(scope="session")
def encoder(roberta: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Adapters: topics (5 labels), mood (yes/no), stars (regression)."""
    folder = tmp_path_factory.mktemp("encoder")
    with Live(config_for(roberta, folder)) as live:
        fleet = Fleet(live, roberta, folder)
        fleet.add("topics", random_adapter(roberta.info, 1, "classification", ["a", "b", "c", "d", "e"]))
        fleet.add("mood", random_adapter(roberta.info, 2, "classification"))
        fleet.add("stars", random_adapter(roberta.info, 3, "regression"))
        yield fleet


@pytest.fixture
def tiny_server(llama: Backbone, tmp_path: Path) -> Iterator[object]:
    """Starts servers of the decoder with other options: `tiny_server(max_queue=1)` gives a Fleet without adapters."""
    started: list[Live] = []

    def start(**options: object) -> Fleet:
        live = Live(config_for(llama, tmp_path, **options))
        started.append(live)
        return Fleet(live, llama, tmp_path)

    yield start
    for live in started:
        live.stop()

"""Tiny bases, loaded once: to be served, and plain beside them as the reference."""

from pathlib import Path

import pytest
import torch
from cdvft.backbone import Backbone, load_backbone
from cdvft_server.engine.kernels import KernelMaker

from tests.server.engine.reference import COUNTS, Decoder, Encoder
from tests.tiny import tiny_bert, tiny_llama, tiny_roberta

torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter):
    """At most one greedy position in 10,000 may be excused as a near tie."""
    if COUNTS["positions"]:
        terminalreporter.write_line(
            "greedy against transformers: {positions} positions, {excused} excused".format(**COUNTS)
        )


@pytest.fixture
def padded_groups(monkeypatch):
    """The attention of accelerators, here on the CPU."""
    right = KernelMaker.__init__
    monkeypatch.setattr(KernelMaker, "__init__", lambda self, *args: right(self, *args[:3], "groups"))


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("bases")
    makers = {"llama": tiny_llama, "roberta": tiny_roberta, "bert": tiny_bert}
    return {name: make(home / name, seed=i) for i, (name, make) in enumerate(makers.items())}


@pytest.fixture(scope="session")
def llama(folders) -> Backbone:
    return load_backbone(str(folders["llama"]))


@pytest.fixture(scope="session")
def roberta(folders) -> Backbone:
    return load_backbone(str(folders["roberta"]))


@pytest.fixture(scope="session")
def bert(folders) -> Backbone:
    return load_backbone(str(folders["bert"]))


@pytest.fixture(scope="session")
def decoder(folders) -> Decoder:
    return Decoder(folders["llama"])


@pytest.fixture(scope="session")
def encoders(folders) -> dict[str, Encoder]:
    return {"roberta": Encoder(folders["roberta"], pooler=False), "bert": Encoder(folders["bert"], pooler=True)}

"""Bases for the library's tests, loaded once; and one made of nothing but numbers."""

import pytest
import torch
from cdvft.backbone import Backbone, load_backbone

from tests.tiny import tiny_bert, tiny_llama, tiny_roberta

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> Backbone:
    return load_backbone(str(tiny_llama(tmp_path_factory.mktemp("bases") / "tiny-llama", seed=1)))


@pytest.fixture(scope="session")
def roberta(tmp_path_factory) -> Backbone:
    return load_backbone(str(tiny_roberta(tmp_path_factory.mktemp("bases") / "tiny-roberta", seed=2)))


@pytest.fixture(scope="session")
def bert(tmp_path_factory) -> Backbone:
    return load_backbone(str(tiny_bert(tmp_path_factory.mktemp("bases") / "tiny-bert", seed=3)))

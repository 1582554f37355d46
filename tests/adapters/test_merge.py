"""Merging: the plain model with W + dW, and back bit for bit."""

import copy

import pytest
import torch
from cdvft.errors import UnsupportedBase
from cdvft.linear import AdapterContext, adapt
from cdvft.merge import merge

from tests.tiny import random_adapter


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name].view(torch.uint8), b[name].view(torch.uint8)) for name in a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("adapted", [False, True])
def test_merge_adds_dense_once_and_unmerge_restores_every_bit(llama, dtype, adapted) -> None:
    model = copy.deepcopy(llama.model).to(dtype)
    if adapted:
        adapt(model, llama.info.sites, AdapterContext())
    before = weights(model)
    adapter = random_adapter(llama.info, 4, targets=["q_proj", "up_proj"], num_factors=3)
    with merge(model, adapter):
        expected = dict(before)
        for site in adapter.spec.sites:
            name = f"{site.name}.linear.weight" if adapted else f"{site.name}.weight"
            expected[name] = (before[name].double() + adapter.dense(site)).to(dtype)
            assert not torch.equal(expected[name], before[name])
        assert same_bits(expected, weights(model))
    assert same_bits(before, weights(model))


def test_unmerge_by_hand_and_twice(roberta) -> None:
    model = copy.deepcopy(roberta.model)
    before = weights(model)
    merged = merge(model, random_adapter(roberta.info, 1))
    assert not same_bits(before, weights(model))
    merged.unmerge()
    merged.unmerge()
    assert same_bits(before, weights(model))
    with merge(model, random_adapter(roberta.info, 2)):
        pass
    assert same_bits(before, weights(model))


def test_an_exception_inside_unmerges(roberta) -> None:
    model = copy.deepcopy(roberta.model)
    before = weights(model)
    with pytest.raises(KeyError), merge(model, random_adapter(roberta.info, 1)):
        raise KeyError
    assert same_bits(before, weights(model))


def test_a_second_adapter_on_the_same_layers_is_refused_and_changes_nothing(roberta) -> None:
    model = copy.deepcopy(roberta.model)
    first = random_adapter(roberta.info, 1, targets=["query"])
    with merge(model, first):
        inside = weights(model)
        with pytest.raises(RuntimeError, match=f"merged with {first.digest} already"):
            merge(model, random_adapter(roberta.info, 2, targets=["value", "query"]))
        assert same_bits(inside, weights(model))
        with merge(model, random_adapter(roberta.info, 3, targets=["value"])):
            assert not same_bits(inside, weights(model))
        assert same_bits(inside, weights(model))


def test_layers_that_cannot_take_dw_are_refused(roberta, llama) -> None:
    model = copy.deepcopy(roberta.model)
    adapter = random_adapter(roberta.info, 1, targets=["query"])
    model.encoder.layer[1].attention.self.query = torch.nn.Identity()
    before = weights(model)
    with pytest.raises(UnsupportedBase, match=r"layer.1.attention.self.query is a Identity"):
        merge(model, adapter)
    assert same_bits(before, weights(model))
    model.encoder.layer[1].attention.self.query = torch.nn.Linear(32, 33)
    with pytest.raises(UnsupportedBase, match=r"is \[33, 32\], the adapter is for \[32, 32\]"):
        merge(model, adapter)

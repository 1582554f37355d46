"""The digest: moved by everything an answer depends on, by nothing else, and never by a new release."""

import json
from dataclasses import replace

import pytest
import torch
from cdvft.adapter import AdapterSpec
from cdvft.baseinfo import BaseInfo
from cdvft.checkpoint import adapter_digest, adapter_files, make_adapter, read_adapter
from cdvft.errors import InvalidAdapter
from cdvft.family import FAMILIES
from cdvft.heads import HeadSpec
from cdvft.methods.cdvft import CdvftSpec
from cdvft.site import Site

from tests.adapters.editing import with_config, with_tensors
from tests.tiny import random_adapter

SITES = (Site("layers.0.self_attn.q_proj", 4, 4), Site("layers.0.mlp.up_proj", 4, 6))
BASE = BaseInfo("b", "sha256:" + "0" * 64, FAMILIES["llama"], {site.name: site for site in SITES}, 4, 64, False)
OPTIONS = CdvftSpec(2, 2, 1.5)


def spec(**changes) -> AdapterSpec:
    full = AdapterSpec(
        "cdvft",
        dict.fromkeys(SITES, OPTIONS),
        "classification",
        HeadSpec("linear", "last", 2),
        ("no", "yes"),
        32,
        "{{ messages }}",
    )
    return replace(full, **changes)


def tensors() -> dict[str, dict[str, torch.Tensor]]:
    def ramp(*shape: int) -> torch.Tensor:
        count = int(torch.tensor(shape).prod())
        return (torch.arange(count).reshape(shape) - 3) / 7

    return {
        SITES[0].name: {"cdvft_diag_in": ramp(4), "cdvft_circ": ramp(2, 2, 2), "cdvft_diag_out": ramp(1, 4)},
        SITES[1].name: {"cdvft_diag_in": ramp(4), "cdvft_circ": ramp(3, 2, 2), "cdvft_diag_out": ramp(1, 6)},
    }


def head() -> dict[str, torch.Tensor]:
    return {"classifier.weight": torch.arange(8.0).reshape(2, 4), "classifier.bias": torch.tensor([0.5, -0.5])}


GOLDEN = "sha256:7ef8386246ab27e6f5409e3884c0f7ae40eed3e5a1fb104cec7bd5cd26e1391e"


def test_the_value_is_frozen() -> None:
    """Stored adapters are named by this: it must never change. If this fails, the change is wrong, not the value."""
    assert adapter_digest(spec(), tensors(), head()) == GOLDEN
    assert make_adapter(spec(), tensors(), head(), BASE).digest == GOLDEN


def all_sites(**changes) -> dict[Site, CdvftSpec]:
    return dict.fromkeys(SITES, replace(OPTIONS, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "other"},
        {"task": "regression"},
        {"head": HeadSpec("linear", "mean", 2)},
        {"head": HeadSpec("standard", "last", 2)},
        {"head": HeadSpec("linear", "last", 3)},
        {"head": None},
        {"labels": ("yes", "no")},
        {"labels": None},
        {"max_length": 31},
        {"max_length": None},
        {"template": "{{ messages}}"},
        {"template": None},
        {"sites": {SITES[0]: OPTIONS}},
        {"sites": {SITES[0]: OPTIONS, Site("layers.0.mlp.down_proj", 4, 6): OPTIONS}},
        {"sites": {SITES[0]: OPTIONS, Site(SITES[1].name, 6, 4): OPTIONS}},
        {"sites": all_sites(partition_size=4)},
        {"sites": all_sites(num_factors=3)},
        {"sites": all_sites(alpha=1.25)},
        {"sites": all_sites(circulant_convention="first_row")},
        {"sites": all_sites(block_grid="square")},
        {"sites": all_sites(padding="cyclic")},
        {"sites": {SITES[0]: OPTIONS, SITES[1]: replace(OPTIONS, alpha=1.25)}},
    ],
)
def test_every_part_of_the_spec_counts(changes) -> None:
    assert adapter_digest(spec(**changes), tensors(), head()) != GOLDEN


def test_both_zeros_of_alpha_are_one(llama) -> None:
    negative = adapter_digest(spec(sites=all_sites(alpha=-0.0)), tensors(), head())
    assert negative == adapter_digest(spec(sites=all_sites(alpha=0.0)), tensors(), head()) != GOLDEN
    files = adapter_files(random_adapter(llama.info, 5), llama.info)
    read = [read_adapter(with_config(files, alpha=alpha), llama.info).digest for alpha in (0.0, -0.0, 0)]
    assert len(set(read)) == 1


def test_every_tensor_counts_by_name_dtype_shape_and_bytes() -> None:
    seen = {GOLDEN}
    for site in (s.name for s in SITES):
        for name in ("cdvft_diag_in", "cdvft_circ", "cdvft_diag_out"):
            changed = tensors()
            changed[site][name].view(-1)[-1] += 1e-6
            seen.add(adapter_digest(spec(), changed, head()))
    renamed = tensors()
    renamed[SITES[0].name]["cdvft_diag"] = renamed[SITES[0].name].pop("cdvft_diag_in")
    seen.add(adapter_digest(spec(), renamed, head()))
    reshaped = tensors()
    reshaped[SITES[0].name]["cdvft_circ"] = reshaped[SITES[0].name]["cdvft_circ"].reshape(2, 4)
    seen.add(adapter_digest(spec(), reshaped, head()))
    retyped = tensors()
    retyped[SITES[0].name]["cdvft_diag_in"] = retyped[SITES[0].name]["cdvft_diag_in"].view(torch.int32)
    seen.add(adapter_digest(spec(), retyped, head()))
    swapped = tensors()
    swapped[SITES[0].name], swapped[SITES[1].name] = swapped[SITES[1].name], swapped[SITES[0].name]
    seen.add(adapter_digest(spec(), swapped, head()))
    seen.add(adapter_digest(spec(), tensors(), head() | {"classifier.bias": torch.tensor([0.5, 0.5])}))
    seen.add(adapter_digest(spec(), tensors(), {"classifier.weight": head()["classifier.weight"]}))
    assert len(seen) == 1 + 6 + 4 + 2


def test_order_and_memory_layout_do_not_count() -> None:
    backwards = {site: dict(reversed(own.items())) for site, own in reversed(tensors().items())}
    strided = backwards[SITES[0].name]["cdvft_circ"].permute(2, 1, 0).contiguous().permute(2, 1, 0)
    backwards[SITES[0].name]["cdvft_circ"] = strided
    reordered = spec(sites=dict(reversed(spec().sites.items())))
    assert adapter_digest(reordered, backwards, dict(reversed(head().items()))) == GOLDEN


def test_what_no_answer_depends_on_does_not_count(llama) -> None:
    adapter = random_adapter(llama.info, 5, "classification")
    files = adapter_files(adapter, llama.info, {"cdvft_dropout": 0.5})
    assert read_adapter(files, llama.info).digest == adapter.digest
    elsewhere = with_config(files, base_model_name_or_path="/some/other/path", revision="x", cdvft_dropout=0.1)
    assert read_adapter(elsewhere, llama.info).digest == adapter.digest
    shuffled = with_tensors(files, lambda t: [t.update({k: t.pop(k)}) for k in sorted(t, reverse=True)])  # no metadata
    assert shuffled.weights != files.weights
    assert read_adapter(shuffled, llama.info).digest == adapter.digest
    spelled = replace(files, config=json.dumps(json.loads(files.config), indent=7).encode())
    assert read_adapter(spelled, llama.info).digest == adapter.digest


def test_make_adapter_refuses_what_does_not_fit_the_base() -> None:
    cases = [
        (spec(sites={}), tensors(), "changes no site"),
        (spec(sites={Site("layers.0.self_attn.q_proj", 4, 5): OPTIONS}), tensors(), "has no linear layer"),
        (spec(sites={SITES[0]: OPTIONS}), tensors(), "not among the adapter's sites"),
        (spec(), {SITES[0].name: tensors()[SITES[0].name]}, "layers.0.mlp.up_proj lacks"),
        (spec(method="nothing"), tensors(), "method 'nothing' is not known; known: cdvft"),
    ]
    for wrong, own, part in cases:
        with pytest.raises(InvalidAdapter, match=part):
            make_adapter(wrong, own, head(), BASE)


def test_an_adapter_keeps_its_own_copy_of_the_tensors() -> None:
    trained = tensors()
    adapter = make_adapter(spec(), trained, head(), BASE)
    trained[SITES[0].name]["cdvft_circ"].zero_()
    assert adapter_digest(adapter.spec, adapter.tensors, adapter.head) == GOLDEN

"""The contract that every registered method keeps. A new method needs no line here: it brings `examples` of its own."""

import json
from dataclasses import replace

import pytest
import torch
from cdvft.adapter import AdapterSpec
from cdvft.baseinfo import BaseInfo
from cdvft.checkpoint import adapter_files, freeze, make_adapter, read_adapter
from cdvft.family import FAMILIES
from cdvft.methods import METHODS, Method
from cdvft.prepared import prepare_adapter
from cdvft.selftest import probe_sites
from cdvft.site import Site
from hypothesis import given, settings
from hypothesis import strategies as st


@st.composite
def cases(draw, max_size: int = 13):
    """A method, a site, one of the method's examples for it, and a seed for random, asymmetric tensors."""
    method = draw(st.sampled_from(METHODS))
    sizes = st.integers(1, max_size)
    site = Site("layers.0.self_attn.q_proj", draw(sizes), draw(sizes))
    return method, site, draw(st.sampled_from(method.examples(site))), draw(st.integers(0, 2**31))


def random_tensors(method: Method, site: Site, spec, seed: int, dtype=torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = method.shapes(site, spec)
    return {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}


def share(method: Method, site: Site, spec, seed: int) -> dict[str, torch.Tensor]:
    """The site's frozen tensors, as a new adapter has them."""
    return method.frozen_of(method.frozen({site: spec}, torch.Generator().manual_seed(seed)), site, spec)


def base_of(*sites: Site) -> BaseInfo:
    named = {site.name: site for site in sites}
    return BaseInfo("paper", "sha256:" + "0" * 64, FAMILIES["llama"], named, 8, 64, False)


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    size = max(float(expected.abs().max()), 1e-30)
    return float((actual.double() - expected.double()).abs().max()) <= tolerance * size


def magnitude(dense: torch.Tensor, x: torch.Tensor) -> float:
    """The size that rounding is relative to: terms may cancel in the result."""
    return float(dense.abs().sum(1).max()) * float(x.abs().max()) + 1e-30


def test_every_method_has_its_own_names() -> None:
    assert len({m.name for m in METHODS}) == len({m.peft_type for m in METHODS}) == len(METHODS)


@given(cases())
def test_apply_is_the_dense_matrix(case) -> None:
    method, site, spec, seed = case
    tensors = random_tensors(method, site, spec, seed) | share(method, site, spec, seed)
    dense = method.dense(tensors, site, spec)
    assert dense.dtype == torch.float64
    assert dense.shape == (site.d_out, site.d_in)
    x = torch.randn(3, 2, site.d_in, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    layout = method.layout(site, spec)
    exact = x @ dense.T
    doubles = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    assert close(method.apply(x, method.prepare(doubles, site, spec), layout), exact, 1e-11)
    single = method.apply(x.float(), method.prepare(tensors, site, spec), layout)
    assert single.dtype == torch.float32
    assert float((single - exact).abs().max()) <= 1e-4 * magnitude(dense, x)
    assert close(method.reference(x, tensors, site, spec), exact, 1e-11)


@given(cases(), st.lists(st.integers(0, 3), min_size=1, max_size=9))
def test_a_batch_of_rows_is_each_row_alone_and_row_zero_is_nothing(case, rows: list[int]) -> None:
    method, site, spec, seed = case
    frozen = share(method, site, spec, seed)
    adapters = [random_tensors(method, site, spec, seed + k) | frozen for k in range(3)]
    own = [method.prepare(tensors, site, spec) for tensors in adapters]
    shared = {name: own[0][name] for name in method.shared_tables}
    assert all(torch.equal(t[name], shared[name]) for t in own for name in shared)
    tables = {
        name: torch.stack([torch.zeros_like(table), *(t[name] for t in own)])
        for name, table in own[0].items()
        if name not in shared
    }
    x = torch.randn(len(rows), site.d_in, generator=torch.Generator().manual_seed(seed))
    layout = method.layout(site, spec)
    together = method.apply(x, {name: table[rows] for name, table in tables.items()} | shared, layout)
    for position, row in enumerate(rows):
        if row == 0:
            assert torch.equal(together[position], torch.zeros(site.d_out))
        else:
            alone = method.apply(x[position : position + 1], own[row - 1], layout)[0]
            scale = magnitude(method.dense(adapters[row - 1], site, spec), x)
            assert float((together[position] - alone).abs().max()) <= 1e-4 * scale


@given(cases(max_size=5))
@settings(max_examples=40)
def test_gradients_are_right_through_prepare_and_apply(case) -> None:
    method, site, spec, seed = case
    tensors = random_tensors(method, site, spec, seed, torch.float64)
    names, frozen = sorted(tensors), share(method, site, spec, seed)
    layout = method.layout(site, spec)

    def forward(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return method.apply(x, method.prepare(dict(zip(names, values, strict=True)) | frozen, site, spec), layout)

    x = torch.randn(2, site.d_in, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    inputs = [t.clone().requires_grad_() for t in (x, *(tensors[name] for name in names))]
    assert torch.autograd.gradcheck(forward, inputs, fast_mode=False)


@given(cases())
def test_a_fresh_adapter_changes_nothing_and_can_learn(case) -> None:
    method, site, spec, seed = case
    fresh = method.init(site, spec, torch.Generator().manual_seed(seed))
    assert {name: tuple(t.shape) for name, t in fresh.items()} == method.shapes(site, spec)
    assert all(t.dtype == torch.float32 for t in fresh.values())
    frozen = share(method, site, spec, seed)
    assert torch.count_nonzero(method.dense(fresh | frozen, site, spec)) == 0
    x = torch.randn(4, site.d_in, generator=torch.Generator().manual_seed(seed))
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in fresh.items()}
    target = torch.randn(4, site.d_out, generator=torch.Generator().manual_seed(seed + 1))
    y = method.apply(x, method.prepare(leaves | frozen, site, spec), method.layout(site, spec))
    (y - target).square().sum().backward()
    assert any(float(t.grad.abs().max()) > 0 for t in leaves.values() if t.grad is not None)


@given(cases())
def test_config_and_spec_say_the_same(case) -> None:
    method, site, spec, _ = case
    other = Site("layers.1.mlp.up_proj", 2 * site.d_in, site.d_out)
    specs = {site: spec, other: spec}
    config = json.loads(json.dumps(method.config(specs)))
    assert set(config) <= method.config_keys
    assert {s: method.spec(config, s) for s in specs} == specs
    assert hash(spec) == hash(method.spec(config, site))
    assert hash(method.layout(site, spec)) == hash(method.layout(site, method.spec(config, site)))


@given(cases())
@settings(max_examples=50)
def test_save_and_load_is_bit_identical(case) -> None:
    method, site, spec, seed = case
    base = base_of(site)
    tensors = {site.name: random_tensors(method, site, spec, seed)}
    frozen = method.frozen({site: spec}, torch.Generator().manual_seed(seed))
    adapter = make_adapter(AdapterSpec(method.name, {site: spec}), tensors, {}, base, frozen=frozen)
    files = adapter_files(adapter, base)
    again = read_adapter(files, base)
    assert again.digest == adapter.digest
    assert again.spec == adapter.spec
    assert again.base_verified
    assert again.tensors.keys() == adapter.tensors.keys()
    for name, tensor in adapter.tensors[site.name].items():
        assert torch.equal(again.tensors[site.name][name].view(torch.int32), tensor.view(torch.int32))
    assert again.frozen.keys() == adapter.frozen.keys()
    assert all(torch.equal(again.frozen[name], tensor) for name, tensor in adapter.frozen.items())
    assert adapter_files(again, base) == files
    assert freeze(files, again) == files
    if method.frozen_in_config and files.frozen is not None:
        left_to_the_seed = read_adapter(replace(files, frozen=None), base)
        assert left_to_the_seed.digest == adapter.digest
        assert freeze(replace(files, frozen=None), left_to_the_seed) == files


@given(cases())
@settings(max_examples=50)
def test_accounts_and_self_test(case) -> None:
    method, site, spec, seed = case
    tensors = {site.name: random_tensors(method, site, spec, seed)}
    frozen = method.frozen({site: spec}, torch.Generator().manual_seed(seed))
    adapter = make_adapter(AdapterSpec(method.name, {site: spec}), tensors, {}, base_of(site), frozen=frozen)
    prepared = prepare_adapter(adapter)
    assert adapter.num_parameters == method.num_parameters(site, spec)
    assert method.flops(site, spec) > 0
    assert prepared.nbytes == sum(t.numel() * t.element_size() for t in prepared.tables[site.name].values())
    assert hash(prepared.signature) == hash(prepare_adapter(adapter).signature)
    assert probe_sites(adapter, prepared) < 1e-3


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_examples_are_valid_and_differ(method: Method) -> None:
    site = Site("layers.0.self_attn.q_proj", 6, 4)
    examples = list(method.examples(site))
    assert examples
    assert len(set(examples)) == len(examples)

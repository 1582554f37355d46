"""The adapted layer: chunks, mixed slices against dense products, the context's rules, training against serving."""

import copy
import threading
from dataclasses import replace

import pytest
import torch
from cdvft.linear import CHUNK, AdaptedLinear, AdapterContext, BankSlice, TrainableLinear, adapt
from cdvft.methods.cdvft import Cdvft, CdvftSpec
from cdvft.prepared import prepare_adapter
from cdvft.site import Site
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.tiny import random_adapter

METHOD = Cdvft()
SITE = Site("layers.0.mlp.up_proj", 6, 10)
OTHER = Site("layers.0.mlp.down_proj", 10, 6)
SPECS = {"short blocks": CdvftSpec(2, 2, 1.3), "three factors": CdvftSpec(5, 3, 0.7, padding="cyclic")}


class Bank:
    """Four adapters of one kind at SITE, row 0 zeros; `dense[row]` is the oracle."""

    def __init__(self, spec: CdvftSpec, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        shapes = METHOD.shapes(SITE, spec)
        own = [{n: torch.randn(s, generator=generator) for n, s in shapes.items()} for _ in range(4)]
        rows = [METHOD.prepare(tensors, SITE, spec) for tensors in own]
        self.tables = {n: torch.stack([torch.zeros_like(rows[0][n]), *(row[n] for row in rows)]) for n in rows[0]}
        self.layout = METHOD.layout(SITE, spec)
        self.dense = [torch.zeros(SITE.d_out, SITE.d_in).double(), *(METHOD.dense(t, SITE, spec) for t in own)]

    def slice(self, start: int, runs: list[tuple[int, int]]) -> BankSlice:
        stop = start + sum(count for _, count in runs)
        return BankSlice(start, stop, METHOD, {SITE.name: self.tables}, {SITE.name: self.layout}, runs)


BANKS = [Bank(spec, seed) for seed, spec in enumerate(SPECS.values())]
lengths = st.sampled_from(
    [1, 2, 3, 13 - 1, Cdvft.view_tokens, Cdvft.view_tokens + 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 7]
)
runs_of_tokens = st.lists(st.tuples(st.integers(0, 4), lengths), max_size=8)


@given(st.integers(0, 50), runs_of_tokens)
def test_chunks_cover_the_slice_in_order_with_the_right_rows(start: int, runs: list[tuple[int, int]]) -> None:
    bank_slice = BANKS[0].slice(start, runs)
    position, rows = start, []
    for begin, end, picked in bank_slice.chunks:
        assert begin == position
        assert 0 < end - begin <= CHUNK
        rows += [picked] * (end - begin) if isinstance(picked, int) else picked.tolist()
        if not isinstance(picked, int):
            assert len(picked) == end - begin
        position = end
    assert position == bank_slice.stop
    assert rows == [row for row, count in runs for _ in range(count)]


@given(st.lists(st.tuples(st.integers(0, 1), runs_of_tokens, st.integers(0, 3)), max_size=3))
@settings(max_examples=60)
def test_mixed_slices_equal_a_dense_product_per_token(parts) -> None:
    """Slices of two banks with gaps between them: what no slice covers is the base, bit for bit."""
    slices, owners, position = [], [], 0
    for bank, runs, gap in parts:
        position += gap
        owners += [0] * gap + [5 * bank + row for row, count in runs for _ in range(count)]
        slices.append(BANKS[bank].slice(position, runs))
        position = slices[-1].stop
    owners.append(0)
    context = AdapterContext()
    layer = AdaptedLinear(nn.Linear(SITE.d_in, SITE.d_out), SITE, context)
    x = torch.randn(1, len(owners), SITE.d_in)
    with torch.no_grad():
        base = layer(x)
        with context.activate(slices):
            y = layer(x)
        assert torch.equal(layer(x), base)  # nothing is active any more
    untouched = torch.tensor(owners) % 5 == 0
    assert torch.equal(y[0, untouched], base[0, untouched])
    dense = torch.stack([weight for bank in BANKS for weight in bank.dense])[owners]  # [T, d_out, d_in]
    with torch.no_grad():
        exact = layer.linear.double()(x[0].double()) + torch.einsum("toi,ti->to", dense, x[0].double())
    torch.testing.assert_close(y[0].double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", ["auto", "torch"])
def test_rows_in_a_tensor_are_read_as_the_forward_runs(kernel) -> None:
    """Two banks over all tokens, as recorded batches have them; a token that neither owns is the base, bit for bit (by
    torch also where its input is not finite)."""
    context = AdapterContext(kernel)
    layer = AdaptedLinear(nn.Linear(SITE.d_in, SITE.d_out), SITE, context)
    rows = torch.zeros(2, 6, dtype=torch.int64)
    slices = [replace(bank.slice(0, []), stop=6, rows=own) for bank, own in zip(BANKS, rows, strict=True)]
    x = torch.randn(6, SITE.d_in)
    x[5, 0] = torch.inf if kernel == "torch" else 1.0
    with torch.no_grad():
        base = layer(x)
        for owners in ([1, 0, 7, 9, 2, 0], [8, 3, 0, 4, 6, 0]):
            for bank, own in enumerate(rows):
                own.copy_(torch.tensor([owner % 5 if owner // 5 == bank else 0 for owner in owners]))
            with context.activate(slices):
                y = layer(x)
            untouched = torch.tensor(owners) == 0
            assert torch.equal(y[untouched], base[untouched])
            dense = torch.stack([weight for bank in BANKS for weight in bank.dense])[owners]
            exact = base.double() + torch.einsum("toi,ti->to", dense, x.double())
            torch.testing.assert_close(y[:5].double(), exact[:5], rtol=1e-4, atol=1e-4)


def test_a_site_without_tables_stays_the_base() -> None:
    context = AdapterContext()
    layer = AdaptedLinear(nn.Linear(OTHER.d_in, OTHER.d_out), OTHER, context)
    x = torch.randn(5, OTHER.d_in)
    with torch.no_grad(), context.activate([BANKS[0].slice(0, [(1, 5)])]):
        assert torch.equal(layer(x), layer.linear(x))


def test_contexts_do_not_nest_and_clear_on_exceptions() -> None:
    context = AdapterContext()
    layer = AdaptedLinear(nn.Linear(SITE.d_in, SITE.d_out), SITE, context)
    x = torch.randn(3, SITE.d_in)
    plan = [BANKS[0].slice(0, [(2, 3)])]
    with torch.no_grad():
        base = layer.linear(x)
        with context.activate(plan):
            with pytest.raises(RuntimeError, match="do not nest"), context.activate([]):
                pass
            assert not torch.equal(layer(x), base)  # the outer batch is still active
        with pytest.raises(KeyError), context.activate(plan):
            raise KeyError
        assert torch.equal(layer(x), base)
        with context.activate([]), pytest.raises(RuntimeError, match="do not nest"), context.activate(plan):
            pass


def test_another_batch_may_run_while_one_is_suspended() -> None:
    context = AdapterContext()
    layer = AdaptedLinear(nn.Linear(SITE.d_in, SITE.d_out), SITE, context)
    x = torch.randn(3, SITE.d_in)
    first, second = [BANKS[0].slice(0, [(2, 3)])], [BANKS[0].slice(0, [(1, 3)])]
    with torch.no_grad():
        with context.activate(second):
            expected = layer(x)
        with context.activate(first):
            before = layer(x)
            with context.suspended():
                assert torch.equal(layer(x), layer.linear(x))
                with context.activate(second):
                    assert torch.equal(layer(x), expected)
            assert torch.equal(layer(x), before)
            with pytest.raises(KeyError), context.suspended():
                raise KeyError
            assert torch.equal(layer(x), before)
    assert not torch.equal(before, expected)


def test_a_context_belongs_to_its_thread() -> None:
    context = AdapterContext()
    layer = AdaptedLinear(nn.Linear(SITE.d_in, SITE.d_out), SITE, context)
    x = torch.randn(3, SITE.d_in)
    seen: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def elsewhere(name: str, row: int | None) -> None:
        if row is None:
            seen[name] = layer(x)
            return
        with context.activate([BANKS[0].slice(0, [(row, 3)])]):
            seen[name] = layer(x)

    with torch.no_grad(), context.activate([BANKS[0].slice(0, [(1, 3)])]):
        threads = [threading.Thread(target=elsewhere, args=args) for args in (("base", None), ("two", 2))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seen["one"] = layer(x)
    with torch.no_grad():
        assert torch.equal(seen["base"], layer.linear(x))
    for name, row in (("one", 1), ("two", 2)):
        expected = seen["base"].double() + x.double() @ BANKS[0].dense[row].T
        torch.testing.assert_close(seen[name].double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_layer_keeps_the_bases_dtype(dtype: torch.dtype) -> None:
    context = AdapterContext()
    layer = AdaptedLinear(nn.Linear(SITE.d_in, SITE.d_out, dtype=dtype), SITE, context)
    x = torch.randn(1, 4, SITE.d_in, dtype=dtype)
    with torch.no_grad(), context.activate([BANKS[0].slice(0, [(1, 4)])]):
        y = layer(x)
    assert y.dtype == layer.weight.dtype == dtype
    exact = layer.linear(x).detach().double() + x.double() @ BANKS[0].dense[1].T
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert float((y.double() - exact).abs().max()) <= tolerance * float(exact.abs().max())


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_training_and_serving_compute_the_same(spec: CdvftSpec) -> None:
    tensors = {n: torch.randn(s) for n, s in METHOD.shapes(SITE, spec).items()}
    linear = nn.Linear(SITE.d_in, SITE.d_out)
    trainable = TrainableLinear(linear, SITE, METHOD, spec, tensors)
    prepared = METHOD.prepare(tensors, SITE, spec)
    tables = {n: torch.stack([torch.zeros_like(t), t]) for n, t in prepared.items()}
    context = AdapterContext()
    served = AdaptedLinear(linear, SITE, context)
    x = torch.randn(1, 9, SITE.d_in)
    bank = BankSlice(0, 9, METHOD, {SITE.name: tables}, {SITE.name: METHOD.layout(SITE, spec)}, [(1, 9)])
    with torch.no_grad(), context.activate([bank]):
        expected = served(x)
    torch.testing.assert_close(trainable(x).detach(), expected, rtol=1e-5, atol=1e-5)
    trainable(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trainable.vectors.values())
    tensors["cdvft_diag_in"].zero_()  # the layer trains its own copy
    torch.testing.assert_close(trainable(x).detach(), expected, rtol=1e-5, atol=1e-5)


def test_trainable_keeps_fp32_vectors_under_autocast() -> None:
    spec = SPECS["short blocks"]
    tensors = {n: torch.randn(s) for n, s in METHOD.shapes(SITE, spec).items()}
    layer = TrainableLinear(nn.Linear(SITE.d_in, SITE.d_out), SITE, METHOD, spec, tensors)
    x = torch.randn(4, SITE.d_in)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
        plain = layer.linear(x)
    assert y.dtype == torch.bfloat16
    delta = x.double() @ METHOD.dense(tensors, SITE, spec).T
    assert float((y.double() - plain.double() - delta).abs().max()) <= 2e-2 * float(delta.abs().max())


def test_adapt_replaces_every_site_in_place(llama) -> None:

    model = copy.deepcopy(llama.model)
    context = AdapterContext()
    adapter = random_adapter(llama.info, 1, targets=["q_proj", "v_proj", "down_proj"])
    ids = torch.tensor([[0, 5, 9, 7, 30]])
    with torch.no_grad():
        before = model(input_ids=ids).last_hidden_state
        adapt(model, llama.info.sites, context)
        assert sum(isinstance(m, AdaptedLinear) for m in model.modules()) == len(llama.info.sites)
        assert torch.equal(model(input_ids=ids).last_hidden_state, before)
        prepared = prepare_adapter(adapter)
        rows = {s: {n: t[None] for n, t in own.items()} for s, own in prepared.tables.items()}
        with context.activate([BankSlice(0, 5, prepared.method, rows, prepared.layouts, [(0, 5)])]):
            after = model(input_ids=ids).last_hidden_state
        plain = copy.deepcopy(llama.model)
        for site in adapter.spec.sites:
            plain.get_submodule(site.name).weight += adapter.dense(site).float()
        expected = plain(input_ids=ids).last_hidden_state
    assert float((after - before).abs().max()) > 0.1
    torch.testing.assert_close(after, expected, rtol=1e-3, atol=1e-3)

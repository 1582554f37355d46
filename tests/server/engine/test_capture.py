"""Who records decode steps; and that a recorded step is what a capture can record, of every family and method.

The step runs on the meta device: what is not there cannot be read, and whatever stands on the host shows.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import ref

import pytest
import torch
from cdvft.backbone import load_backbone
from cdvft.family import FAMILIES
from cdvft.linear import AdapterContext, adapt
from cdvft.methods import METHODS
from cdvft.prepared import prepare_adapter
from cdvft_server.engine.attention import ATTENTION
from cdvft_server.engine.bank import BankView
from cdvft_server.engine.capture import Recording, recording_of
from cdvft_server.engine.graphs import ROWS, GraphRunner, Kind
from cdvft_server.engine.runners import kv_arena
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.tiny import method_adapter, random_adapter, tiny_base

DECODERS = [name for name, family in FAMILIES.items() if family.kind == "decoder"]
TOKENS = 4


class OnDevice(TorchDispatchMode):
    """Fails where an operation reads or makes a tensor on the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, result)):
            assert not isinstance(tensor, Tensor) or tensor.device.type == "meta", f"{func} on {tensor.device}"
        return result


class Nothing:
    """Attention that only has the right shape."""

    def attention(self, start: Tensor, length: Tensor) -> Any:
        return lambda query, key, value, scaling: torch.empty_like(query)


def on_meta(tables: Any, *rows: int) -> Any:
    return {
        site: {name: torch.empty((*rows, *t.shape), dtype=t.dtype, device="meta") for name, t in own.items()}
        for site, own in tables.items()
    }


def test_what_the_watch_sees() -> None:
    with OnDevice():
        torch.zeros(2, device="meta").add_(1)
        with pytest.raises(AssertionError, match="on cpu"):
            torch.tensor([1, 2])
        with pytest.raises((RuntimeError, NotImplementedError)):
            torch.zeros(1, device="meta").item()


@pytest.mark.parametrize("family", DECODERS)
def test_a_recorded_step_needs_nothing_of_the_host(tmp_path: Path, family: str) -> None:
    """Three examples of each method, and a CDVFT that no kernel takes, in one step; a first one fills caches."""
    base = load_backbone(str(tiny_base(tmp_path / "base", family)))
    adapters = [random_adapter(base.info, 1, num_factors=3, partition_size=5, padding="cyclic")]
    adapters += [method_adapter(base.info, method, which, 2) for method in METHODS for which in (0, 1, -1)]
    prepared = [prepare_adapter(adapter) for adapter in adapters]
    views = [
        BankView(k, own.method, on_meta(own.tables, 2), own.layouts, on_meta(own.shared))
        for k, own in enumerate(prepared)
    ]
    context = AdapterContext("torch")
    adapt(base.model, base.info.sites, context)
    base.model.to("meta").config._attn_implementation = ATTENTION
    base.lm_head.to("meta")
    runner = GraphRunner(base, context, kv_arena(base, 16), Nothing())
    inputs = torch.empty(ROWS + len(views), TOKENS, dtype=torch.int64, device="meta")
    kind = Kind(TOKENS, tuple(map(ref, views)))
    with torch.inference_mode():
        runner._forward(kind, inputs)
        with OnDevice():
            hidden, logits = runner._forward(kind, inputs)
    assert hidden.shape == (TOKENS, base.info.hidden)
    assert logits.shape == (TOKENS, base.config.vocab_size)


def test_where_decode_steps_are_recorded(llama, monkeypatch):
    assert recording_of(llama, "off") == Recording(False, "asked for")
    assert not recording_of(llama, "auto").on
    with pytest.raises(ValueError, match=r"CUDA graphs cannot be had: .*; use auto or off"):
        recording_of(llama, "on")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert recording_of(llama, "auto") == Recording(False, "the device is cpu")
    config = SimpleNamespace(hidden_size=32, num_attention_heads=4)
    base = SimpleNamespace(device=torch.device("cuda", 0), lm_head=object(), config=config)
    monkeypatch.setattr("cdvft_server.engine.capture.find_spec", lambda name: object())
    assert recording_of(base, "auto") == Recording(True, "the device is cuda")
    assert recording_of(base, "on") == Recording(True, "asked for")
    config.head_dim = 512
    assert recording_of(base, "auto") == Recording(False, "heads of 512 numbers; the kernel takes 256")
    base.lm_head = None
    assert recording_of(base, "auto") == Recording(False, "the base generates nothing")
    monkeypatch.setattr("cdvft_server.engine.capture.find_spec", lambda name: None)
    assert recording_of(base, "auto") == Recording(False, "triton is not installed")

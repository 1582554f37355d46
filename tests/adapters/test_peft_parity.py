"""Checkpoints that PEFT writes, of every method that both have, give PEFT's logits: exact import or refusal."""

from pathlib import Path
from typing import Any

import pytest
import torch
from cdvft.backbone import Backbone, load_backbone
from cdvft.checkpoint import read_adapter, read_folder
from cdvft.errors import InvalidAdapter
from cdvft.family import FAMILIES
from cdvft.heads import head_logits
from cdvft.linear import AdapterContext, BankSlice, adapt
from cdvft.prepared import prepare_adapter
from peft import C3AConfig, FourierFTConfig, LoraConfig, VeraConfig, WaveFTConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.tiny import tiny_base, tiny_bert, tiny_llama, tiny_roberta

BASES = {"llama": tiny_llama, "roberta": tiny_roberta, "bert": tiny_bert}
QV = ["q_proj", "v_proj", "query", "value"]
MLP = [*QV, "up_proj", "down_proj", "intermediate.dense", "output.dense"]
CONFIGS: dict[str, Any] = {
    "lora": lambda: LoraConfig(r=4, lora_alpha=10, target_modules=QV),
    "lora, dropout": lambda: LoraConfig(r=3, lora_alpha=7, lora_dropout=0.1, target_modules=MLP),
    "rslora": lambda: LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=QV),
    "lora, patterns of llama": lambda: LoraConfig(
        r=4,
        lora_alpha=10,
        target_modules=QV,
        rank_pattern={"model.layers.0.self_attn.q_proj": 3, r"layers\.1\..*": 7, "v_proj": 2},
        alpha_pattern={r"^model\.layers\.1\..*q_proj": 33, "v_proj": 5.5},
    ),
    "lora, patterns of roberta": lambda: LoraConfig(
        r=4,
        lora_alpha=10,
        target_modules=QV,
        rank_pattern={r"layer\.1\..*value": 7, "query": 2},
        alpha_pattern={"roberta.encoder.layer.0.attention.self.query": 1, "value": 33},
    ),
    "lora, all linear": lambda: LoraConfig(r=2, target_modules="all-linear"),
    "lora, one layer": lambda: LoraConfig(r=2, target_modules=QV, layers_to_transform=[1]),
    "fourierft": lambda: FourierFTConfig(n_frequency=50, scaling=20.0, target_modules=QV),
    "fourierft, pattern": lambda: FourierFTConfig(
        n_frequency=64,
        n_frequency_pattern={"v_proj": 9, "value": 1024},
        scaling=15.0,
        random_loc_seed=5,
        target_modules=MLP,
    ),
    "vera": lambda: VeraConfig(r=8, target_modules=QV),
    "vera, key": lambda: VeraConfig(r=5, projection_prng_key=77, save_projection=False, target_modules=MLP),
    "vera, saved": lambda: VeraConfig(r=5, projection_prng_key=78, save_projection=True, target_modules=MLP),
    "waveft": lambda: WaveFTConfig(n_frequency=60, scaling=5.0, target_modules=MLP),
    "waveft, db3": lambda: WaveFTConfig(
        n_frequency=99, scaling=5.0, wavelet_family="db3", random_loc_seed=1, target_modules=MLP
    ),
    "waveft, coif1, pattern": lambda: WaveFTConfig(
        n_frequency=30,
        n_frequency_pattern={"v_proj": 9, "value": 300},
        scaling=5.0,
        wavelet_family="coif1",
        target_modules=QV,
    ),
    "waveft, no transform": lambda: WaveFTConfig(n_frequency=30, scaling=5.0, use_idwt=False, target_modules=MLP),
    "c3a": lambda: C3AConfig(block_size=8, target_modules=QV),
    "c3a, pattern": lambda: C3AConfig(block_size=16, block_size_pattern={"v_proj": 4, "value": 32}, target_modules=MLP),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parity")


def base_path(folder: Path, kind: str) -> Path:
    path = folder / kind
    return path if path.exists() else BASES[kind](path)


def saved(path: Path, kind: str, config: Any, out: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """A PEFT adapter with random tensors, written to `out`: (ids, PEFT's logits)."""
    if kind == "llama":
        config.task_type = "CAUSAL_LM"
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(path), config).eval()
    else:
        config.task_type = "SEQ_CLS"
        plain = AutoModelForSequenceClassification.from_pretrained(path, num_labels=3)
        model = get_peft_model(plain, config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * (3.0 if "c3a" in name else 0.3))
    model.save_pretrained(out)
    ids = torch.randint(5, 90, (1, 13))
    with torch.no_grad():
        return ids, model(input_ids=ids).logits[0]


def served(backbone: Backbone, out: Path, ids: torch.Tensor) -> torch.Tensor:
    """The adapter as the server applies it: prepared tables in a bank row, unmerged."""
    adapter = read_adapter(read_folder(out), backbone.info)
    prepared = prepare_adapter(adapter)
    context = AdapterContext()
    adapt(backbone.model, {site.name: site for site in adapter.spec.sites}, context)
    tables = {
        s: {n: torch.stack([torch.zeros_like(t), t]) for n, t in own.items()} for s, own in prepared.tables.items()
    }
    count = ids.shape[1]
    bank = BankSlice(0, count, prepared.method, tables, prepared.layouts, [(1, 2), (1, count - 2)], prepared.shared)
    with torch.no_grad(), context.activate([bank]):
        hidden = backbone.model(input_ids=ids).last_hidden_state
        if adapter.spec.head is None:
            assert backbone.lm_head is not None
            return backbone.lm_head(hidden)[0]
        return head_logits(adapter.spec.head, adapter.head, hidden[:, 0], backbone.pooler)[0]


@pytest.mark.filterwarnings("ignore:Specified to not save vera_A")
@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_pefts(name: str, kind: str, folder: Path, tmp_path: Path) -> None:
    path = base_path(folder, kind)
    if "patterns of" in name and not name.endswith(kind):
        pytest.skip("PEFT warns where a pattern fits no layer")
    if (kind, name) == ("bert", "lora, all linear"):
        pytest.skip("PEFT adapts BERT's pooler, which is no site: that is refused")
    ids, expected = saved(path, kind, CONFIGS[name](), tmp_path)
    backbone = load_backbone(str(path))
    found = served(backbone, tmp_path, ids)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    with torch.no_grad():
        plain = backbone.model(input_ids=ids).last_hidden_state
    assert plain.isfinite().all()


@pytest.mark.parametrize("kind", sorted(FAMILIES.keys() - BASES.keys()))
@pytest.mark.parametrize("all_layers", [False, True])
def test_every_family_gives_pefts_logits(kind: str, all_layers: bool, folder: Path, tmp_path: Path) -> None:
    family = FAMILIES[kind]
    path = folder / kind
    path = path if path.exists() else tiny_base(path, kind)
    names = list(family.projections.values()) if all_layers else [family.projections[k] for k in "qv"]
    config = LoraConfig(r=4, lora_alpha=10, target_modules=names)
    ids, expected = saved(path, "llama" if family.kind == "decoder" else kind, config, tmp_path)
    found = served(load_backbone(str(path)), tmp_path, ids)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"layer_replication": [(0, 2), (1, 2)]}, "layer_replication"),
    ],
)
def test_lora_options_that_are_not_served(options: dict[str, Any], word: str, folder: Path, tmp_path: Path) -> None:
    path = base_path(folder, "llama")
    saved(path, "llama", LoraConfig(r=2, target_modules=QV, **options), tmp_path)
    with pytest.raises(InvalidAdapter, match=word):
        read_adapter(read_folder(tmp_path), load_backbone(str(path)).info)


def test_an_adapted_pooler_is_refused(folder: Path, tmp_path: Path) -> None:
    path = base_path(folder, "bert")
    saved(path, "bert", LoraConfig(r=2, target_modules="all-linear"), tmp_path)
    with pytest.raises(InvalidAdapter, match=r"bert\.pooler\.dense.* belongs to no linear layer"):
        read_adapter(read_folder(tmp_path), load_backbone(str(path)).info)

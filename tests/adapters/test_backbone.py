"""Loading a frozen base: what is read off it, and what is refused rather than made up."""

import json
from pathlib import Path

import pytest
import torch
from cdvft.backbone import choose_device, load_backbone, resolve_base
from cdvft.errors import CdvftError, UnsupportedBase
from cdvft.family import FAMILIES, family_of
from cdvft.site import Site
from safetensors.torch import load_file, save_file
from transformers import BertForMaskedLM, RobertaForMaskedLM

from tests.tiny import tiny_bert, tiny_llama, tiny_roberta


def test_llama(llama) -> None:
    info = llama.info
    assert (info.name, info.family.kind, info.hidden, info.max_length) == ("tiny-llama", "decoder", 32, 256)
    assert len(info.sites) == 2 * 7
    assert info.sites["layers.0.self_attn.k_proj"] == Site("layers.0.self_attn.k_proj", 32, 16)
    assert info.sites["layers.1.mlp.down_proj"] == Site("layers.1.mlp.down_proj", 48, 32)
    assert llama.lm_head.weight.shape == (259, 32)
    assert llama.eos_ids == {1}
    assert llama.pooler is None


def test_encoders(roberta, bert) -> None:
    for backbone, pooled in ((roberta, False), (bert, True)):
        info = backbone.info
        assert (info.family.kind, info.hidden, info.max_length, info.has_pooler) == ("encoder", 32, 96, pooled)
        assert len(info.sites) == 2 * 6
        assert info.sites["encoder.layer.1.intermediate.dense"] == Site("encoder.layer.1.intermediate.dense", 32, 48)
        assert not any("pooler" in name for name in info.sites)
        assert (backbone.pooler is not None) == pooled
        assert backbone.lm_head is None


def test_a_base_is_frozen_and_without_dropout(llama, roberta, bert) -> None:
    for backbone in (llama, roberta, bert):
        parameters = [*backbone.model.parameters(), *(backbone.lm_head.parameters() if backbone.lm_head else ())]
        assert not any(parameter.requires_grad for parameter in parameters)
        assert not backbone.model.training
        assert backbone.dtype == torch.float32
        assert backbone.device == torch.device("cpu")


def test_its_outputs_are_the_checkpoints(llama, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([[0, 7, 30, 12]])
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(llama.path)(ids).logits
        ours = llama.lm_head(llama.model(input_ids=ids).last_hidden_state)
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("make", [tiny_llama, tiny_bert])
def test_dtype_device_and_name(make, tmp_path: Path) -> None:
    folder = make(tmp_path / "saved", dtype="bfloat16")
    assert load_backbone(str(folder)).dtype == torch.float32  # auto on the CPU
    backbone = load_backbone(str(folder), dtype="bfloat16", name="served")
    assert backbone.dtype == torch.bfloat16
    assert backbone.info.name == "served"
    assert backbone.info.digest == load_backbone(str(folder)).info.digest


def test_a_masked_language_models_checkpoint_loads_without_its_head(tmp_path: Path) -> None:
    """Checkpoints carry the family prefix and an lm_head; BERT's has no pooler then."""
    for make, whole in ((tiny_roberta, RobertaForMaskedLM), (tiny_bert, BertForMaskedLM)):
        bare = make(tmp_path / make.__name__)
        saved = tmp_path / f"mlm-{make.__name__}"
        whole.from_pretrained(bare).save_pretrained(saved)
        for file in bare.glob("tokenizer*"):
            (saved / file.name).write_bytes(file.read_bytes())
        backbone = load_backbone(str(saved))
        assert not backbone.info.has_pooler
        assert backbone.info.sites == load_backbone(str(bare)).info.sites
        ids = torch.tensor([[3, 20, 21, 4]])
        with torch.no_grad():
            assert torch.equal(
                backbone.model(ids).last_hidden_state, load_backbone(str(bare)).model(ids).last_hidden_state
            )


def test_all_eos_ids_of_the_generation_config_count(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "base")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 5, 9]}))
    assert load_backbone(str(folder)).eos_ids == {1, 5, 9}
    (folder / "generation_config.json").unlink()
    assert load_backbone(str(folder)).eos_ids == {1}


@pytest.mark.parametrize(
    ("make", "part"), [(tiny_llama, "up_proj"), (tiny_roberta, "attention.self.key"), (tiny_bert, "LayerNorm")]
)
def test_missing_weights_are_refused_not_made_up(make, part: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if part not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedBase, match=rf"lacks weights that the model needs .*{part}"):
        load_backbone(str(folder))


def test_what_is_no_served_base_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedBase, match=r"no config\.json there; give a model folder or a Hub id"):
        load_backbone(str(tmp_path))
    with pytest.raises(UnsupportedBase, match=r"no config\.json there"):
        resolve_base("./nowhere")
    with pytest.raises(UnsupportedBase, match="no such folder, and no Hub model that can be fetched") as fetched:
        resolve_base("nobody/nothing-here")  # offline in tests
    assert "\n" not in str(fetched.value)
    assert len(str(fetched.value)) < 300
    with pytest.raises(UnsupportedBase, match=r"^--base path/to/roberta-base: no such folder$"):
        resolve_base("path/to/roberta-base")
    other = tmp_path / "gpt2"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UnsupportedBase, match=r"model_type 'gpt2' is not served; served: roberta, .*llama"):
        load_backbone(str(other))
    folder = tiny_roberta(tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedBase, match=r"has no \*.safetensors file"):
        load_backbone(str(folder))


@pytest.mark.parametrize(
    ("name", "data", "part"),
    [
        ("config.json", b"{", "JSONDecodeError"),
        ("config.json", b"[]", "AttributeError"),
        ("tokenizer.json", b"{}", "cannot be loaded"),
        ("model.safetensors", b"x" * 20, "cannot be loaded"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, data: bytes, part: str) -> None:
    folder = tiny_roberta(tmp_path / "damaged")
    (folder / name).write_bytes(data)
    with pytest.raises(UnsupportedBase, match=part) as caught:
        load_backbone(str(folder))
    assert "damaged" in str(caught.value)


def test_a_checkpoint_of_another_shape_is_refused(tmp_path: Path) -> None:
    folder = tiny_roberta(tmp_path / "mixed")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    with pytest.raises(UnsupportedBase, match="cannot be loaded"):
        load_backbone(str(folder))


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "mps", ""])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(CdvftError, match=rf"--device {name} is not known; use auto, cpu, cuda or cuda:N"):
        choose_device(name)


def test_a_device_that_is_not_there_is_refused_before_anything_is_read(monkeypatch, tmp_path: Path) -> None:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    missing = f"cuda:{count}"
    with pytest.raises(CdvftError, match=rf"^--device {missing}: (this PyTorch has no CUDA; use|no CUDA|the highest)"):
        load_backbone(str(tmp_path / "nowhere"), device=missing)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CdvftError, match="--device cuda: no CUDA device can be used here; use cpu or auto"):
        choose_device("cuda")
    assert choose_device("auto") == choose_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [choose_device(name) for name in ("auto", "cuda", "cuda:1")] == ["cuda", "cuda", "cuda:1"]
    with pytest.raises(CdvftError, match="--device cuda:2: the highest is cuda:1"):
        choose_device("cuda:2")


def test_a_misspelt_dtype_is_refused(llama) -> None:
    with pytest.raises(UnsupportedBase, match="dtype 'bf16' is not known; known: auto, float32, bfloat16, float16"):
        load_backbone(str(llama.path), dtype="bf16")


def test_families_name_their_parts() -> None:
    for model_type, family in FAMILIES.items():
        assert family_of(model_type) is family
        for name in (family.prefixes[0] + "layers.0.x", "layers.0.x"):
            assert family.strip(name) == "layers.0.x"
    assert family_of("llama").standard_pooling == family_of("llama").linear_pooling == "last"
    assert (family_of("bert").standard_pooling, family_of("bert").linear_pooling) == ("first", "mean")

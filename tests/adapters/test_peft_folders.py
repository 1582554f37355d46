"""Folders as PEFT itself writes them: its names for modules and heads, its keys in the config."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from cdvft.checkpoint import adapter_files, read_adapter, read_folder
from cdvft.files import AdapterFiles
from cdvft.heads import HeadSpec
from peft import LoraConfig, PeftConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.tiny import random_adapter

# PEFT still asks for what transformers renamed
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

# of LoRA's config, what is not LoRA's own
SHARED_KEYS = (
    "target_modules exclude_modules layers_to_transform layers_pattern modules_to_save fan_in_fan_out bias "
    "lora_dropout trainable_token_indices target_parameters layer_replication use_dora init_lora_weights"
).split()
COMMON = {*PeftConfig().to_dict(), *SHARED_KEYS}


def saved_by_peft(model, config: LoraConfig, folder: Path) -> AdapterFiles:
    get_peft_model(model, config).save_pretrained(folder)
    return read_folder(folder)


def as_cdvft(files: AdapterFiles, base, adapter) -> AdapterFiles:
    """PEFT's own config keys and tensor names, LoRA's numbers replaced by CDVFT's."""
    config = {key: value for key, value in json.loads(files.config).items() if key in COMMON} | {"peft_type": "CDVFT"}
    tensors = {}
    for name, tensor in safetensors.torch.load(files.weights).items():
        module, found, _ = name.partition(".lora_A.")
        if found:
            site = base.family.strip(module.removeprefix("base_model.model."))
            tensors |= {f"{module}.{own}": t for own, t in adapter.tensors[site].items()}
        elif ".lora_B." not in name:
            tensors[name] = tensor
    return AdapterFiles(json.dumps(config).encode(), safetensors.torch.save(tensors))


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "all-linear", r".*\.(up|down)_proj"])
def test_a_causal_lm(llama, tmp_path: Path, targets) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama.path)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=targets)
    saved = saved_by_peft(model, config, tmp_path)
    adapter = random_adapter(llama.info, 1, targets=[name.rpartition(".")[2] for name in llama.info.sites])
    read = read_adapter(as_cdvft(saved, llama.info, adapter), llama.info)
    ends = {"all-linear": 7, r".*\.(up|down)_proj": 2}.get(targets if isinstance(targets, str) else "", 2)
    assert len(read.spec.sites) == 2 * ends
    assert read.spec.task == "lm"
    assert not read.base_verified


@pytest.mark.parametrize("model_type", ["llama", "roberta", "bert"])
def test_a_sequence_classifier(model_type: str, tmp_path: Path, request) -> None:
    backbone = request.getfixturevalue(model_type)
    base = backbone.info
    model = AutoModelForSequenceClassification.from_pretrained(backbone.path, num_labels=3)
    targets = ["q_proj", "v_proj"] if model_type == "llama" else ["query", "value"]
    saved = saved_by_peft(model, LoraConfig(task_type="SEQ_CLS", target_modules=targets), tmp_path)
    adapter = random_adapter(base, 1)
    read = read_adapter(as_cdvft(saved, base, adapter), base, ["x", "y", "z"])
    assert read.spec.head == HeadSpec("standard", base.family.standard_pooling, 3)
    assert read.spec.labels == ("x", "y", "z")
    head = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(("classifier", "score"))}
    for name, tensor in read.head.items():
        own = next(t for full, t in head.items() if full.endswith(name.split(".", 1)[1]) and "original" not in full)
        assert torch.equal(tensor, own)


def test_our_names_are_pefts(roberta, tmp_path: Path) -> None:
    """What we write for a standard head carries exactly the module paths that PEFT gives it."""
    model = AutoModelForSequenceClassification.from_pretrained(roberta.path, num_labels=2)
    saved = saved_by_peft(model, LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"]), tmp_path)
    theirs = {name.partition(".lora_")[0] for name in safetensors.torch.load(saved.weights)}
    ours = adapter_files(
        random_adapter(roberta.info, 1, "classification", head=HeadSpec("standard", "first", 2)), roberta.info
    )
    assert {name.partition(".cdvft_")[0] for name in safetensors.torch.load(ours.weights)} == theirs

"""CDVFT inside PEFT: what a PEFT user does, and that what they save is what the server reads."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cdvft.backbone import load_backbone
from cdvft.checkpoint import adapter_files, read_adapter, read_folder, write_folder
from cdvft.merge import merge
from cdvft.tuner import CDVFTConfig, CDVFTLinear, LaMDAConfig, SDCTFTConfig
from peft import AutoPeftModelForSequenceClassification, PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, Trainer, TrainingArguments

from tests.tiny import random_adapter, tiny_bert, tiny_llama, tiny_roberta

LABELS = {0: "no", 1: "yes", 2: "maybe"}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tuner") / "tiny-llama")


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_roberta(tmp_path_factory.mktemp("tuner") / "tiny-roberta")


def writer(path: Path, **options: Any) -> Any:
    model = AutoModelForCausalLM.from_pretrained(path)
    return get_peft_model(model, CDVFTConfig(**{"task_type": "CAUSAL_LM", "init_weights": False, **options})).eval()


def classifier(path: Path, **options: Any) -> Any:
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=3, id2label=LABELS)
    return get_peft_model(model, CDVFTConfig(**{"task_type": "SEQ_CLS", "init_weights": False, **options})).eval()


def ids(rows: int = 3, length: int = 9) -> Tensor:
    return torch.randint(3, 200, (rows, length))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def logits(model: Any, x: Tensor, **options: Any) -> Tensor:
    result: Tensor = model(input_ids=x, **options).logits
    return result


OPTIONS = [
    {},
    {"num_factors": 3, "alpha": 0.5},
    {"partition_size": 5},
    {"partition_size": 16, "partition_size_pattern": {"v_proj": 8, "value": 8}, "padding": "cyclic"},
    {"circulant_convention": "first_row", "block_grid": "square", "partition_size": 12},
    {"target_modules": "all-linear"},
    {"target_modules": r".*\.0\..*(query|q_proj)"},
    {"target_modules": ["query", "q_proj"], "layers_to_transform": [1]},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_is_saved_is_what_the_library_reads(options: dict[str, Any], llama: Path, tmp_path: Path) -> None:
    """Same tensors, and the logits of the base with the adapter's float64 dW merged in."""
    model, x = writer(llama, **options), ids()
    model.save_pretrained(tmp_path)
    base = load_backbone(str(llama))
    adapter = read_adapter(read_folder(tmp_path), base.info)
    assert adapter.base_verified
    assert adapter.spec.task == "lm"
    assert adapter.num_parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    with torch.no_grad(), merge(base.model, adapter):
        expected = base.lm_head(base.model(input_ids=x).last_hidden_state)  # type: ignore[misc]
    close(logits(model, x), expected)
    assert (logits(model, x) - logits(model.get_base_model(), x)).abs().max() == 0
    with model.disable_adapter():
        assert (logits(model, x) - expected).abs().max() > 1e-3


def test_a_classifier_is_read_with_head_and_labels(roberta: Path, tmp_path: Path) -> None:
    model, x = classifier(roberta, max_length=50), ids()
    model.save_pretrained(tmp_path)
    base = load_backbone(str(roberta))
    adapter = read_adapter(read_folder(tmp_path), base.info)
    assert adapter.spec.labels == ("no", "yes", "maybe")
    assert adapter.spec.head is not None
    assert (adapter.spec.head.type, adapter.spec.max_length) == ("standard", 50)
    again = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3).eval()
    assert torch.equal(logits(again, x), logits(model, x))


def test_bert_through_its_pooler(tmp_path: Path) -> None:
    path = tiny_bert(tmp_path / "tiny-bert")
    classifier(path).save_pretrained(tmp_path / "adapter")
    adapter = read_adapter(read_folder(tmp_path / "adapter"), load_backbone(str(path)).info)
    assert sorted(adapter.head) == ["classifier.bias", "classifier.weight"]


def test_dw_is_zero_at_the_start_and_one_step_moves_it(roberta: Path) -> None:
    model, x = classifier(roberta, init_weights=True), ids()
    with model.disable_adapter():
        plain = logits(model, x)
    assert torch.equal(logits(model, x), plain)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    nn.functional.cross_entropy(model(input_ids=x).logits, torch.tensor([0, 1, 2])).backward()
    optimizer.step()
    layers = [m for m in model.modules() if isinstance(m, CDVFTLinear)]
    assert layers
    assert all(layer.get_delta_weight("default").abs().max() > 0 for layer in layers)


def test_merge_and_unmerge(llama: Path) -> None:
    model, x = writer(llama), ids()
    before = {name: p.clone() for name, p in model.named_parameters()}
    expected = logits(model, x)
    model.merge_adapter(safe_merge=True)
    close(logits(model, x), expected)
    assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    model.unmerge_adapter()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    plain = model.merge_and_unload()
    assert not any(isinstance(module, CDVFTLinear) for module in plain.modules())
    close(logits(plain, x), expected)


def test_merge_of_a_classifier_keeps_its_head(roberta: Path) -> None:
    model, x = classifier(roberta), ids()
    expected = logits(model, x)
    close(logits(model.merge_and_unload(), x), expected)


def test_safe_merge_refuses_what_is_not_finite(llama: Path) -> None:
    model = writer(llama)
    layer = next(m for m in model.modules() if isinstance(m, CDVFTLinear))
    layer.cdvft_diag_in["default"].data[0] = torch.inf
    weight = layer.get_base_layer().weight.clone()
    with pytest.raises(ValueError, match=r"q_proj.*not finite"):
        layer.merge(safe_merge=True)
    assert torch.equal(layer.get_base_layer().weight, weight)


def test_several_adapters_and_rows_that_mix_them(llama: Path) -> None:
    """Each row of a mixed batch is what its adapter gives alone, the base among them; what was set comes back."""
    model, x = writer(llama), ids(4)
    model.add_adapter("other", CDVFTConfig(task_type="CAUSAL_LM", num_factors=3, init_weights=False))
    model.add_adapter("third", CDVFTConfig(task_type="CAUSAL_LM", target_modules=["k_proj"], init_weights=False))
    names = ["other", "__base__", "third", "default"]
    alone = []
    for name in names:
        if name == "__base__":
            with model.disable_adapter():
                alone.append(logits(model, x))
        else:
            model.set_adapter(name)
            alone.append(logits(model, x))
    model.set_adapter("default")
    model.eval()
    mixed = logits(model, x, adapter_names=names)
    for row, expected in enumerate(alone):
        close(mixed[row], expected[row])
        others = [k for k in range(4) if k != row]
        assert all((mixed[row] - alone[k][row]).abs().max() > 1e-3 for k in others)
    close(logits(model, x), alone[3])


def test_generate_with_adapter_names(llama: Path) -> None:
    model, x = writer(llama), ids(2)
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 2, "attention_mask": torch.ones_like(x)}
    own = model.generate(input_ids=x, **options)
    with model.disable_adapter():
        base = model.generate(input_ids=x, **options)
    mixed = model.generate(input_ids=x, adapter_names=["default", "__base__"], **options)
    assert mixed.tolist() == [own[0].tolist(), base[1].tolist()]
    beams = model.generate(input_ids=x, adapter_names=["default", "__base__"], num_beams=2, **options)
    assert len(beams) == 2


def test_adapter_names_that_cannot_be_served(llama: Path, roberta: Path) -> None:
    model, x = writer(llama), ids(2)
    with pytest.raises(ValueError, match="defualt; loaded: default"):
        logits(model, x, adapter_names=["default", "defualt"])
    with pytest.raises(ValueError, match="3 names, the batch 2 rows"):
        logits(model, x, adapter_names=["default"] * 3)
    with pytest.raises(TypeError, match="list of names"):
        logits(model, x, adapter_names="default")
    good = logits(model, x)
    model.train()
    with pytest.raises(ValueError, match="inference"):
        logits(model, x, adapter_names=["default"] * 2)
    model.eval()
    assert torch.equal(logits(model, x), good)  # a refused batch leaves nothing behind
    model.merge_adapter()
    with pytest.raises(ValueError, match="unmerge_adapter"):
        logits(model, x, adapter_names=["default"] * 2)
    with pytest.raises(TypeError, match="Mixed batching is only supported"):  # PEFT mixes no heads of several layers
        logits(classifier(roberta), x, adapter_names=["default"] * 2)


def test_adapters_are_saved_loaded_and_deleted_by_name(llama: Path, tmp_path: Path) -> None:
    model, x = writer(llama), ids()
    model.add_adapter("other", CDVFTConfig(task_type="CAUSAL_LM", partition_size=8, init_weights=False))
    model.save_pretrained(tmp_path)
    model.set_adapter("other")
    expected = logits(model, x)
    again = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(llama), tmp_path / "other", adapter_name="mine"
    ).eval()
    assert torch.equal(logits(again, x), expected)
    again.load_adapter(tmp_path, adapter_name="first")
    with pytest.warns(UserWarning, match="Setting active adapter to first"):
        again.delete_adapter("mine")
    assert again.active_adapters == ["first"]
    assert not any("mine" in name for name, _ in again.named_parameters())


def test_an_adapter_of_our_trainer_loads_into_peft(llama: Path, tmp_path: Path) -> None:
    base, x = load_backbone(str(llama)), ids()
    adapter = random_adapter(base.info, 5, num_factors=3)
    write_folder(tmp_path, adapter_files(adapter, base.info))
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), tmp_path).eval()
    with torch.no_grad(), merge(base.model, adapter):
        close(logits(model, x), base.lm_head(base.model(input_ids=x).last_hidden_state))  # type: ignore[misc]


def test_a_linear_head_is_refused_not_lost(roberta: Path, tmp_path: Path) -> None:
    base = load_backbone(str(roberta))
    write_folder(tmp_path, adapter_files(random_adapter(base.info, 5, "classification"), base.info))
    model = AutoModelForSequenceClassification.from_pretrained(roberta)
    with pytest.raises(ValueError, match="--head standard"):
        PeftModel.from_pretrained(model, tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_vectors_stay_fp32_beside_a_base_of_half_precision(dtype: torch.dtype, llama: Path, tmp_path: Path) -> None:
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(llama, dtype=dtype),
        CDVFTConfig(task_type="CAUSAL_LM", init_weights=False),
        autocast_adapter_dtype=False,
    )
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert logits(model, ids()).dtype == dtype
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama, dtype=dtype), tmp_path)
    saved = dict(again.named_parameters())
    assert all(torch.equal(p, saved[name]) for name, p in trained.items())


def test_autocast_and_gradient_checkpointing_change_no_gradient(llama: Path) -> None:
    """Checkpointing exactly; autocast within bf16's rounding, and the vectors' gradients stay fp32."""
    x = ids()
    gradients = {}
    for mode in ("plain", "checkpointing", "autocast"):
        torch.manual_seed(3)
        model = writer(llama)
        if mode == "checkpointing":
            model.enable_input_require_grads()
            model.get_base_model().activation_checkpointing_enable()
        model.train()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mode == "autocast"):
            loss = model(input_ids=x, labels=x, use_cache=False).loss
        loss.backward()
        gradients[mode] = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    for name, plain in gradients["plain"].items():
        assert torch.equal(gradients["checkpointing"][name], plain)
        assert gradients["autocast"][name].dtype == torch.float32
        error = (gradients["autocast"][name] - plain).norm() / plain.norm()
        assert error < 0.1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_factors": 1}, "num_factors must be an integer from 2"),
        ({"partition_size": 0}, "partition_size must be an integer from 1"),
        ({"partition_size": 4096}, "twice the larger side"),
        ({"alpha": float("nan")}, "alpha must be a finite number"),
        ({"padding": "mirror"}, "padding must be one of zero, cyclic"),
        ({"partition_size_pattern": {"v_proj": -1}}, "partition_size_pattern must map"),
        ({"target_modules": ["embed_tokens"]}, "Embedding"),
        ({"target_modules": ".*q_proj", "layers_to_transform": [0]}, "layers_to_transform"),
    ],
    ids=str,
)
def test_options_that_cannot_be(options: dict[str, Any], words: str, llama: Path) -> None:
    with pytest.raises(ValueError, match=words):
        writer(llama, **options)


def test_an_option_that_does_not_exist_is_refused() -> None:
    with pytest.raises(TypeError, match="partitionsize"):
        CDVFTConfig(partitionsize=8)  # type: ignore[call-arg]


def test_config_survives_saving(tmp_path: Path) -> None:
    config = CDVFTConfig(task_type="SEQ_CLS", partition_size=8, num_factors=4, labels=["a", "b"], max_length=30)
    config.save_pretrained(tmp_path)
    again = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(again, CDVFTConfig)
    assert {**again.to_dict(), "peft_version": None} == {**config.to_dict(), "peft_version": None}


def test_the_trainer_of_transformers(roberta: Path, tmp_path: Path) -> None:
    """It trains the vectors and the head alone, saves what the server reads, and reloads its best checkpoint."""
    model = classifier(roberta, init_weights=True, max_length=40)
    base_before = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    rows = [{"input_ids": ids(1, 12)[0], "labels": torch.tensor(k % 3)} for k in range(24)]
    for row in rows:
        row["input_ids"][0] = 100 + int(row["labels"])  # the answer is there to be read
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "runs"),
        per_device_train_batch_size=6,
        num_train_epochs=6,
        learning_rate=1e-2,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=3,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)
    first = trainer.evaluate()["eval_loss"]
    trainer.train()
    last = trainer.evaluate()["eval_loss"]
    assert last < 0.7 * first
    assert all(torch.equal(p, base_before[n]) for n, p in model.named_parameters() if n in base_before)
    trainer.save_model(str(tmp_path / "out"))
    adapter = read_adapter(read_folder(tmp_path / "out"), load_backbone(str(roberta)).info)
    assert (adapter.spec.labels, adapter.spec.max_length) == (("no", "yes", "maybe"), 40)
    again = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "out", num_labels=3).eval()
    x = torch.stack([row["input_ids"] for row in rows])
    assert torch.equal(logits(again, x), logits(model.eval(), x))


def test_loading_without_memory_for_random_values_first(llama: Path, tmp_path: Path) -> None:
    model, x = writer(llama), ids()
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), tmp_path, low_cpu_mem_usage=True)
    assert torch.equal(logits(again.eval(), x), logits(model, x))


def test_a_layer_whose_sizes_have_a_small_common_divisor_gets_few_numbers(llama: Path, tmp_path: Path) -> None:
    """The MLP is 32 x 48, gcd 16: blocks of 16 would be six, of 32 two, padded. What is loaded keeps its own."""
    model = writer(llama, target_modules=["up_proj", "down_proj"])
    model.save_pretrained(tmp_path)
    adapter = read_adapter(read_folder(tmp_path), load_backbone(str(llama)).info)
    assert {spec.partition_size for spec in adapter.spec.sites.values()} == {32}
    assert adapter.num_parameters == 2 * 2 * (2 * 32 + 32 + 48)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), tmp_path)
    x = ids()
    close(logits(loaded.eval(), x), logits(model, x))
    old = random_adapter(load_backbone(str(llama)).info, 3, targets=["up_proj"])  # of the config's own default, gcd
    config = json.loads(adapter_files(old, load_backbone(str(llama)).info).config)
    assert {spec.partition_size for spec in old.spec.sites.values()} == {16}
    files = adapter_files(old, load_backbone(str(llama)).info)
    silent = {**config, "partition_size": None, "task_type": "CAUSAL_LM"}
    write_folder(tmp_path / "old", replace(files, config=json.dumps(silent).encode()))
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), tmp_path / "old").eval()
    base = load_backbone(str(llama))
    with torch.no_grad(), merge(base.model, old):
        close(logits(again, x), base.lm_head(base.model(input_ids=x).last_hidden_state))  # type: ignore[misc]


OTHERS: dict[str, Any] = {
    "sdctft": lambda **options: SDCTFTConfig(n_frequency=60, n_frequency_pattern={"v_proj": 7, "value": 9}, **options),
    "lamda": lambda **options: LaMDAConfig(r=5, lora_alpha=3.0, **options),
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_other_methods_that_peft_lacks(name: str, llama: Path, tmp_path: Path) -> None:
    """Saved, read by the library, loaded again, merged, mixed by row, deleted: as CDVFT."""
    x = ids()
    config = OTHERS[name](task_type="CAUSAL_LM", init_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(llama), config).eval()
    model.add_adapter("second", OTHERS[name](task_type="CAUSAL_LM", init_weights=False))
    plain = AutoModelForCausalLM.from_pretrained(llama).eval()
    found = {}
    for adapter_name in ("default", "second"):
        model.set_adapter(adapter_name)
        found[adapter_name] = logits(model, x)
    assert (found["default"] - found["second"]).abs().max() > 1e-3
    mixed = logits(model, x, adapter_names=["default", "second", "__base__"])
    rows = torch.stack([found["default"][0], found["second"][1], logits(plain, x)[2]])
    close(mixed, rows)
    model.save_pretrained(tmp_path)
    base = load_backbone(str(llama))
    for adapter_name, folder in (("default", tmp_path), ("second", tmp_path / "second")):
        adapter = read_adapter(read_folder(folder), base.info)
        assert (adapter.spec.method, adapter.base_verified) == (name, True)
        with torch.no_grad(), merge(base.model, adapter):
            expected = base.lm_head(base.model(input_ids=x).last_hidden_state)  # type: ignore[misc]
        close(found[adapter_name], expected)
    model.set_adapter("default")
    assert adapter.num_parameters * 2 == sum(p.numel() for n, p in model.named_parameters() if f"{name}_" in n)
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), tmp_path, low_cpu_mem_usage=True)
    close(logits(again.eval(), x), found["default"])
    close(logits(again.merge_and_unload(), x), found["default"])
    model.delete_adapter("second")
    close(logits(model, x), found["default"])


@pytest.mark.parametrize("name", OTHERS)
def test_the_others_begin_at_nothing_and_move(name: str, roberta: Path) -> None:
    plain = AutoModelForSequenceClassification.from_pretrained(roberta, num_labels=3).eval()
    x = ids()
    before = logits(plain, x)
    model = get_peft_model(plain, OTHERS[name](task_type="SEQ_CLS")).eval()
    close(logits(model, x), before)
    model(input_ids=x, labels=torch.tensor([0, 1, 2])).loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if f"{name}_" in n}
    assert any(float(g.abs().max()) > 0 for g in gradients.values() if g is not None)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SDCTFTConfig(n_frequency=0), "n_frequency must be an integer from 1"),
        (lambda: SDCTFTConfig(dct_norm="backward"), "dct_norm must be one of ortho"),  # type: ignore[arg-type]
        (lambda: LaMDAConfig(r=-1), "r must be an integer from 1"),
    ],
)
def test_options_of_the_others_that_cannot_be(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_more_coefficients_than_a_layer_has_entries(llama: Path) -> None:
    with pytest.raises(ValueError, match=r"n_frequency 100000 is more than .* has entries"):
        get_peft_model(AutoModelForCausalLM.from_pretrained(llama), SDCTFTConfig(n_frequency=100_000))

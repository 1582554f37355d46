"""Methods that PEFT trains in our loop: what is written is a PEFT adapter, and is what was evaluated."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from cdvft.adapter import AdapterSpec
from cdvft.backbone import load_backbone
from cdvft.checkpoint import read_adapter
from cdvft.dct import dct_matrix
from cdvft.errors import CdvftError
from cdvft.files import read_folder
from cdvft.merge import merge
from cdvft.tensorfile import read_tensors
from cdvft.train import TrainConfig, train
from cdvft.train.data import ClassifyRow, LmRow
from cdvft.train.items import classify_items, lm_items, ordered_batches
from cdvft.train.native import MethodTrainee
from cdvft.train.peft_methods import PeftTrainee
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.tiny import random_adapter, tiny_llama, tiny_roberta

TEXTS = [f"the {a} cat sat on the {b} mat." for a in ("red", "blue", "old") for b in ("big", "small", "good", "bad")]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("methods") / "tiny-llama")


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_roberta(tmp_path_factory.mktemp("methods") / "tiny-roberta")


def texts(folder: Path) -> Path:
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS * 4))
    return path


def perplexity(model: Any, backbone: Any, path: Path) -> float:
    """From the definition, each text alone."""
    total, count = 0.0, 0
    for row in map(json.loads, path.read_text().splitlines()):
        (item,) = lm_items([LmRow("", text=row["text"])], backbone.tokenizer, 256).items
        ids = torch.tensor([item.ids])
        with torch.no_grad():
            log_p = torch.log_softmax(model(input_ids=ids).logits[0].double(), -1)
        total -= sum(log_p[k - 1, ids[0, k]].item() for k in range(1, ids.shape[1]))
        count += ids.shape[1] - 1
    return math.exp(total / count)


@pytest.mark.filterwarnings("ignore:Specified to not (save|load) vera_A")
@pytest.mark.parametrize(
    ("method", "options", "parameters"),
    [
        ("lora", {"rank": 4}, 2 * (4 * (32 + 32) + 4 * (32 + 16))),
        ("fourierft", {"n_frequency": 50}, 2 * 2 * 50),
        ("waveft", {"n_frequency": 40}, 2 * 2 * 40),
        ("vera", {"rank": 16}, 2 * (32 + 16 + 2 * 16)),
        ("c3a", {"partition_size": 8}, 2 * (32 * 4 + 32 * 2)),
    ],
)
def test_peft_loads_what_was_evaluated(
    method: str, options: dict[str, Any], parameters: int, llama: Path, tmp_path: Path
) -> None:
    data = texts(tmp_path)
    config = TrainConfig("lm", str(llama), data, tmp_path / "out", data, method=method, epochs=2, **options)
    result = train(config)
    assert (result["method"], result["parameters"]) == (method, parameters)
    assert result["digest"] == read_adapter(read_folder(config.out), load_backbone(str(llama)).info).digest
    plain = AutoModelForCausalLM.from_pretrained(llama).eval()
    backbone = load_backbone(str(llama))
    before = perplexity(plain, backbone, data)
    with pytest.warns(UserWarning, match="base_digest"):  # the server's, PEFT leaves it out
        model = PeftModel.from_pretrained(plain, config.out).eval()
    assert result["perplexity"] == pytest.approx(perplexity(model, backbone, data), rel=1e-4)
    assert result["perplexity"] < 0.9 * before


@pytest.mark.parametrize(
    ("method", "options", "parameters"),
    [
        ("sdctft", {"n_frequency": 50}, 2 * 2 * 50),
        ("lamda", {"rank": 4, "lr": 2e-2}, 2 * (2 * 4 * 4 + 4 * 32 + 4 * 16)),
    ],
)
def test_methods_that_peft_lacks_train_by_the_functions_that_serve(
    method: str, options: dict[str, Any], parameters: int, llama: Path, tmp_path: Path
) -> None:
    data = texts(tmp_path)
    config = TrainConfig("lm", str(llama), data, tmp_path / "out", data, method=method, epochs=2, **options)
    result = train(config)
    assert (result["method"], result["parameters"]) == (method, parameters)
    backbone = load_backbone(str(llama))
    adapter = read_adapter(read_folder(config.out), backbone.info)
    assert adapter.digest == result["digest"]
    plain = AutoModelForCausalLM.from_pretrained(llama).eval()
    before = perplexity(plain, backbone, data)
    with merge(plain.model, adapter):
        assert result["perplexity"] == pytest.approx(perplexity(plain, backbone, data), rel=1e-4)
    assert result["perplexity"] < 0.9 * before


def test_lamda_begins_at_the_weights_singular_vectors_and_keeps_a(llama: Path, tmp_path: Path) -> None:
    data = texts(tmp_path)
    config = TrainConfig("lm", str(llama), data, tmp_path / "out", data, method="lamda", epochs=1, rank=4)
    train(config)
    backbone = load_backbone(str(llama))
    adapter = read_adapter(read_folder(config.out), backbone.info)
    for name, tensors in adapter.tensors.items():
        weight = backbone.model.get_submodule(name).weight.detach().double()
        _, values, _ = torch.linalg.svd(weight)
        a = tensors["lamda_A"].double()
        torch.testing.assert_close(a @ a.T, torch.eye(4).double(), rtol=1e-5, atol=1e-5)
        assert float((weight @ a.T).norm()) >= 0.95 * float(values[:4].norm())  # of a flat spectrum
        assert tensors["lamda_sigma"].abs().max() > 0
        b = tensors["lamda_B"].double()  # trained a little, at first
        assert 1e-4 < float((b.T @ b - torch.eye(4).double()).norm()) < 1.0


def test_sdctft_chooses_where_the_weight_has_energy(llama: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        "lm", str(llama), texts(tmp_path), tmp_path / "out", method="sdctft", epochs=1, n_frequency=100
    )
    train(config)
    backbone = load_backbone(str(llama))
    adapter = read_adapter(read_folder(config.out), backbone.info)
    for site in adapter.spec.sites:
        weight = backbone.model.get_submodule(site.name).weight.detach().double()
        rows, columns = (dct_matrix(n, torch.arange(n)) for n in (site.d_out, site.d_in))
        energy = (rows @ weight @ columns.T).square().flatten()
        index = adapter.frozen[f"{site.name}.sdctft_indices"]
        assert len(set(index.tolist())) == 100
        assert (
            len(set(index.tolist()) & set(energy.topk(70).indices.tolist())) >= 69
        )  # a tie in fp32 may fall either way


def test_a_lora_classifier_has_its_head_and_labels_in_the_files(roberta: Path, tmp_path: Path) -> None:
    rows = [{"text": text, "label": "warm" if "red" in text else "cold"} for text in TEXTS * 3]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    train(TrainConfig("classify", str(roberta), data, out, data, method="lora", alpha=4.0, epochs=1))
    files = read_folder(out)
    config = json.loads(files.config)
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 8, 4.0)
    assert config["labels"] == ["cold", "warm"]
    assert config["target_modules"] == ["query", "value"]
    names = set(read_tensors(files.weights))
    assert "base_model.model.roberta.encoder.layer.1.attention.self.value.lora_B.weight" in names
    assert {"base_model.model.classifier.weight", "base_model.model.classifier.bias"} < names


def test_the_same_seed_trains_the_same_lora(llama: Path, tmp_path: Path) -> None:
    data = texts(tmp_path)
    weights = set()
    for seed, out in ((1, "a"), (1, "b"), (2, "c")):
        config = TrainConfig("lm", str(llama), data, tmp_path / out, data, method="lora", epochs=1, seed=seed)
        torch.manual_seed(len(weights))
        train(config)
        weights.add(read_folder(config.out).weights)
    assert len(weights) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 4}, "--rank is an option of lora, vera, lamda, not of --method cdvft"),
        ({"method": "lora", "num_factors": 3}, "--num-factors is an option of cdvft, not of --method lora"),
        ({"method": "fourierft", "partition_size": 8}, "--partition-size is an option of cdvft, c3a"),
        ({"method": "lora", "lr_circulant": 1e-3}, "--method lora has --lr"),
    ],
)
def test_options_of_another_method_are_refused(
    options: dict[str, Any], message: str, llama: Path, tmp_path: Path
) -> None:
    with pytest.raises(CdvftError, match=message):
        train(TrainConfig("lm", str(llama), texts(tmp_path), tmp_path / "out", **options))


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_a_padded_batch_pools_as_each_input_alone(pooling: Any, roberta: Path) -> None:
    backbone = load_backbone(str(roberta))
    spec = random_adapter(backbone.info, 3, "classification", ["a", "b", "c"]).spec
    assert spec.head is not None
    head = type(spec.head)("linear", pooling, 3)
    trainee = MethodTrainee(backbone, AdapterSpec(spec.method, spec.sites, spec.task, head, spec.labels), seed=1)
    rows = [ClassifyRow("", text, None, "a", None) for text in ("a", "the red cat", "on the mat it sat, the blue one")]
    items = classify_items(rows, ["a", "b", "c"], backbone.tokenizer, 64, 1).items
    (batch,) = ordered_batches(items, 3, trainee.device)
    together = trainee.outputs(batch)
    for row, item in enumerate(sorted(items, key=lambda item: -len(item.ids))):
        (single,) = ordered_batches([item], 1, trainee.device)
        torch.testing.assert_close(together[row : row + 1], trainee.outputs(single), rtol=1e-4, atol=1e-5)


def test_release_gives_the_base_back(llama: Path, tmp_path: Path) -> None:
    backbone = load_backbone(str(llama))
    before = dict(backbone.model.named_modules())
    spec = random_adapter(backbone.info, 1).spec
    for make in (
        lambda: MethodTrainee(backbone, spec, seed=1),
        lambda: PeftTrainee(backbone, AdapterSpec("lora", dict.fromkeys(spec.sites)), 1, {"r": 2}),
    ):
        trainee = make()
        assert dict(backbone.model.named_modules()) != before
        trainee.release()
        assert dict(backbone.model.named_modules()) == before

"""Interruptions, early stopping, folders of tasks, mixed precision, and what a training leaves beside the adapter."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cdvft.backbone import load_backbone
from cdvft.errors import CdvftError
from cdvft.files import read_folder
from cdvft.train import TrainConfig, train, train_folder
from cdvft.train import loop as loop_module
from cdvft.train.items import Batch
from cdvft.train.objectives import Classification
from cdvft.train.precision import mixed_precision
from cdvft.train.run import execute
from cdvft.train.trainee import Trainee
from torch import Tensor

from tests.tiny import tiny_llama, tiny_roberta

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_roberta(tmp_path_factory.mktemp("resume") / "tiny-roberta")


def rows(path: Path, count: int = 60, seed: int = 1) -> Path:
    draw = random.Random(seed)
    own = [{"text": "".join(draw.choices("abcdef" if k % 2 else "cdefgh", k=9)), "label": k % 2} for k in range(count)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in own))
    return path


def config_for(base: Path, folder: Path, **changes: Any) -> TrainConfig:
    data, valid = rows(folder / "train.jsonl"), rows(folder / "valid.jsonl", 20, 2)
    config = TrainConfig("classify", str(base), data, folder / "out", valid, epochs=3, batch_size=8, weight_decay=0.1)
    return replace(config, **changes)


class PulledPlug(BaseException):
    """Not an Exception: as a kill, nothing on the way may handle it."""


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """The training's `after`-th loss ends the process, so to say."""
    whole, calls = Classification.loss, 0

    def loss(self: Classification, trainee: Trainee, batch: Batch) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > after:
            raise PulledPlug
        return whole(self, trainee, batch)

    monkeypatch.setattr(Classification, "loss", loss)


@pytest.mark.parametrize("method", ["cdvft", "lora"])
@pytest.mark.parametrize("after", [3, 8, 19])
def test_an_interrupted_training_ends_as_if_it_had_not_been(
    method: str, after: int, roberta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, wherever it stopped: in the first epoch, at an epoch's end, in the last."""
    config = config_for(roberta, tmp_path, method=method)
    expected = train(replace(config, out=tmp_path / "whole"))
    with monkeypatch.context() as patched:
        patched.setattr(loop_module, "SAVE_SECONDS", 0.0)
        interrupt(patched, after)
        with pytest.raises(PulledPlug):
            train(config)
    assert not (config.out / "adapter_config.json").exists()
    seen: list[int] = []
    monkeypatch.setattr(Trainee, "outputs", counted(Trainee.outputs, seen))
    result = train(replace(config, resume=True))
    assert read_folder(config.out) == read_folder(tmp_path / "whole")
    told = ("seconds", "out")
    assert {k: v for k, v in result.items() if k not in told} == {k: v for k, v in expected.items() if k not in told}
    assert len(seen) == (24 - after) + 3 * (3 - after // 8)  # the remaining steps and evaluations, no step twice
    assert not (config.out / "training_state.pt").exists()


def counted(function: Any, calls: list[int]) -> Any:
    def call(*args: Any) -> Any:
        calls.append(1)
        return function(*args)

    return call


def interrupted(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, after: int) -> TrainConfig:
    """The same config, after a training by it that ended in the midst of things."""
    with monkeypatch.context() as patched:
        interrupt(patched, after)
        with pytest.raises(PulledPlug):
            train(config)
    return config


def test_resume_refuses_another_training_and_keeps_its_state(
    roberta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = interrupted(config_for(roberta, tmp_path), monkeypatch, 12)
    with pytest.raises(CdvftError, match="started with another lr, seed"):
        train(replace(config, seed=5, lr=1e-3, resume=True))
    other = rows(tmp_path / "other.jsonl", seed=9)
    with pytest.raises(CdvftError, match="started with another data"):
        train(replace(config, data=other, resume=True))
    train(replace(config, resume=True))


def test_a_damaged_state_is_told(roberta: Path, tmp_path: Path) -> None:
    config = config_for(roberta, tmp_path, resume=True)
    config.out.mkdir()
    (config.out / "training_state.pt").write_bytes(b"half of")
    with pytest.raises(CdvftError, match=r"cannot be read .* delete it to start again"):
        train(config)


def test_without_resume_it_starts_again(
    roberta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = interrupted(config_for(roberta, tmp_path), monkeypatch, 12)
    train(config)
    assert "--resume would go on with it" in capsys.readouterr().err
    assert "resumed" not in capsys.readouterr().err


def test_resuming_what_has_ended_trains_nothing(roberta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_for(roberta, tmp_path)
    first = train(config)
    interrupt(monkeypatch, 0)
    assert train(replace(config, resume=True)) == first
    with pytest.raises(PulledPlug):
        train(replace(config, epochs=2, resume=True))


def test_patience_ends_early_and_keeps_the_best(roberta: Path, tmp_path: Path) -> None:
    """With rates of zero no epoch is better than the first."""
    config = config_for(roberta, tmp_path, lr=0.0, lr_head=1e-30, epochs=9, patience=2)
    result = train(config)
    assert (result["epoch"], result["epochs"]) == (1, 3)


def test_the_folder_tells_how_it_was_trained(roberta: Path, tmp_path: Path) -> None:
    config = config_for(roberta, tmp_path)
    result = train(config)
    told = json.loads((config.out / "training.json").read_text())
    assert told["result"] == result
    assert [row["epoch"] for row in told["epochs"]] == [1, 2, 3]
    assert max(row["matthews"] for row in told["epochs"]) == result["matthews"]
    assert (config.out / "training.png").read_bytes().startswith(PNG)


def test_a_folder_of_tasks(roberta: Path, tmp_path: Path) -> None:
    """Each task as if it were trained alone, on one base; a bad one is told and stops no other."""
    tasks, out = tmp_path / "tasks", tmp_path / "out"
    rows(tasks / "one" / "train.jsonl", seed=3), rows(tasks / "one" / "valid.jsonl", 20, 4)
    rows(tasks / "two" / "train.jsonl", seed=5)
    (tasks / "bad").mkdir()
    (tasks / "bad" / "train.csv").write_text("text,label\nx,1\n")
    (tasks / "no task").mkdir()
    config = TrainConfig("classify", str(roberta), tasks, out, epochs=1, batch_size=8)
    results = dict(train_folder(config))
    assert list(results) == ["bad", "one", "two"]
    assert isinstance(results["bad"], CdvftError)
    for name in ("one", "two"):
        valid = tasks / name / "valid.jsonl"
        single = replace(config, data=tasks / name / "train.jsonl", eval=valid if valid.exists() else None)
        train(replace(single, out=tmp_path / name))
        assert read_folder(out / name) == read_folder(tmp_path / name)
    again = dict(train_folder(replace(config, resume=True)))
    assert again["one"] == results["one"]


def test_folders_that_are_no_folders_of_tasks(roberta: Path, tmp_path: Path) -> None:
    config = TrainConfig("classify", str(roberta), tmp_path, tmp_path / "out")
    with pytest.raises(CdvftError, match="is a folder without tasks"):
        list(train_folder(config))
    rows(tmp_path / "t" / "train.jsonl"), rows(tmp_path / "t" / "train.csv")
    with pytest.raises(CdvftError, match=r"has train\.jsonl and train\.csv; keep one"):
        list(train_folder(config))
    with pytest.raises(CdvftError, match="is a folder"):
        train(config)


def test_a_further_file_is_evaluated_with_the_kept_epoch(roberta: Path, tmp_path: Path) -> None:
    config = config_for(roberta, tmp_path)
    assert config.eval is not None
    outcome = execute(config, test=config.eval)
    assert outcome.test is not None
    assert outcome.test.metrics == outcome.evaluation.metrics


@pytest.mark.parametrize("make", [tiny_roberta, tiny_llama])
def test_mixed_precision_is_close_and_leaves_the_base_as_it_was(make: Any, tmp_path: Path) -> None:
    backbone = load_backbone(str(make(tmp_path / "base")))
    before = backbone.model.config._attn_implementation
    ids = torch.randint(3, 90, (3, 11))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    with torch.no_grad():
        plain = backbone.model(input_ids=ids, attention_mask=mask).last_hidden_state
        with mixed_precision(backbone, enabled=True):
            mixed = backbone.model(input_ids=ids, attention_mask=mask).last_hidden_state
        with mixed_precision(backbone, enabled=False):
            again = backbone.model(input_ids=ids, attention_mask=mask).last_hidden_state
    assert torch.equal(again, plain)
    error = (mixed.float() - plain)[mask.bool()].norm() / plain[mask.bool()].norm()
    assert 0 < error < 0.03
    assert backbone.model.config._attn_implementation == before


def test_mixed_precision_trains_and_evaluates_in_float32(roberta: Path, tmp_path: Path) -> None:
    """The report is of the float32 forward: what the server answers."""
    config = config_for(roberta, tmp_path, mixed_precision="bfloat16", lr=1e-2, lr_head=3e-2)
    plain = train(replace(config, mixed_precision="none", out=tmp_path / "plain"))
    mixed = train(config)
    assert read_folder(config.out).weights != read_folder(tmp_path / "plain").weights
    assert mixed["accuracy"] == pytest.approx(plain["accuracy"], abs=0.25)
    from cdvft.train.evaluate import evaluate

    assert config.eval is not None
    assert evaluate(config.out, config.base, config.eval).metrics["accuracy"] == mixed["accuracy"]

import json
import math
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cdvft.adapter import Adapter
from cdvft.backbone import Backbone, load_backbone
from cdvft.checkpoint import read_adapter, read_folder
from cdvft.errors import CdvftError, InvalidData
from cdvft.formatting import encode_classification, encode_completion
from cdvft.heads import head_logits, pool
from cdvft.merge import merge
from cdvft.train import TrainConfig, train
from cdvft.train.data import ClassifyRow, LmRow
from cdvft.train.items import classify_items, lm_items, ordered_batches
from cdvft.train.metrics import pearson
from cdvft.train.native import MethodTrainee
from cdvft.train.objectives import Classification

from tests.tiny import random_adapter, tiny_bert, tiny_llama, tiny_roberta

BASES = {"roberta": tiny_roberta, "bert": tiny_bert, "llama": tiny_llama}
RATES = {"lr": 1e-2, "lr_head": 3e-2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("train")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def base(folder: Path, kind: str) -> Path:
    path = folder / kind
    return path if path.exists() else BASES[kind](path)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def letters(count: int, seed: int) -> list[dict[str, Any]]:
    """Words of one of three alphabets, and their label: quickly learnt, not at once."""
    generator = random.Random(seed)
    rows = []
    for k in range(count):
        alphabet = ("abcdef", "defghi", "ghiabc")[k % 3]
        text = "".join(generator.choice(alphabet) for _ in range(generator.randint(4, 24)))
        rows.append({"text": text, "label": (9, 10, 11)[k % 3]})
    return rows


def classify_config(folder: Path, kind: str, **changes: Any) -> TrainConfig:
    data, valid = write(folder / "train.jsonl", letters(240, 1)), write(folder / "valid.jsonl", letters(60, 2))
    out = folder / f"out-{kind}-{len(list(folder.iterdir()))}"
    config = TrainConfig("classify", str(base(folder, kind)), data, out, valid, epochs=3, batch_size=16, **RATES)
    return replace(config, **changes)


def reread(config: TrainConfig) -> tuple[Adapter, Backbone]:
    backbone = load_backbone(config.base)
    return read_adapter(read_folder(config.out), backbone.info), backbone


def alone(adapter: Adapter, backbone: Backbone, text: str, text2: str | None = None) -> torch.Tensor:
    """The head's outputs for one input, unpadded, through transformers' own forward on merged weights."""
    spec, head = adapter.spec, adapter.spec.head
    assert head is not None
    assert spec.max_length is not None
    types = getattr(backbone.config, "type_vocab_size", 1)
    encoded = encode_classification(
        backbone.tokenizer, text, text2, max_length=spec.max_length, truncate=True, type_vocab_size=types
    )
    inputs = {"input_ids": torch.tensor([encoded.ids])}
    if encoded.type_ids is not None:
        inputs["token_type_ids"] = torch.tensor([encoded.type_ids])
    with torch.no_grad(), merge(backbone.model, adapter):
        hidden = backbone.model(**inputs).last_hidden_state[0]
    return head_logits(head, adapter.head, pool(hidden, head.pooling)[None], backbone.pooler)[0]


@pytest.mark.parametrize(("kind", "head"), [("roberta", "linear"), ("bert", "standard"), ("llama", "linear")])
def test_the_folder_answers_as_the_trainer_evaluated(folder: Path, kind: str, head: Any) -> None:
    config = classify_config(folder, kind, head=head, max_length=16)
    result = train(config)
    adapter = reread(config)[0]
    assert adapter.digest == result["digest"]
    assert adapter.base_verified
    assert adapter.spec.labels == ("9", "10", "11")
    assert adapter.spec.max_length == 16
    assert (result["parameters"], result["head_parameters"]) == (adapter.num_parameters, adapter.head_parameters)
    assert result["accuracy"] == served_accuracy(config) > 0.6
    assert result["truncated"] > 0


def served_accuracy(config: TrainConfig) -> float:
    """The share of the evaluation rows that the written folder gets right, each row alone."""
    adapter, backbone = reread(config)
    assert config.eval is not None
    rows = [json.loads(line) for line in config.eval.read_text().splitlines()]
    answers = [("9", "10", "11")[int(alone(adapter, backbone, row["text"]).argmax())] for row in rows]
    correct = [answer == str(row["label"]) for answer, row in zip(answers, rows, strict=True)]
    return sum(correct) / len(correct)


@pytest.mark.parametrize("kind", sorted(BASES))
def test_padded_outputs_equal_each_input_alone(folder: Path, kind: str) -> None:
    """To 1e-5: padding is seen by neither attention nor pooling."""
    backbone, fresh = load_backbone(str(base(folder, kind))), load_backbone(str(base(folder, kind)))
    adapter = random_adapter(backbone.info, 3, "classification", ["a", "b", "c"], scale=0.3, max_length=40)
    trainee = MethodTrainee(backbone, adapter.spec, seed=0)
    vectors = {f"{site}/{name}": t for site, own in adapter.tensors.items() for name, t in own.items()}
    trainee.load(vectors | {f"head/{name}": t for name, t in adapter.head.items()})
    assert trainee.adapter().digest == adapter.digest
    rows = [
        ClassifyRow("", row["text"], row["text"][:3] if k % 2 else None, "a", None)
        for k, row in enumerate(letters(30, 4))
    ]
    types = getattr(backbone.config, "type_vocab_size", 1)
    items = classify_items(rows, ["a"], backbone.tokenizer, 40, types).items
    for start in range(0, 30, 6):
        part = sorted(range(start, start + 6), key=lambda k: -len(items[k].ids))
        batch = next(ordered_batches([items[k] for k in part], 6, trainee.device))
        assert batch.mask is not None
        for output, k in zip(trainee.outputs(batch), part, strict=True):
            expected = alone(adapter, fresh, rows[k].text, rows[k].text2)
            torch.testing.assert_close(output.detach(), expected, rtol=1e-5, atol=1e-5)


def test_the_seed_decides_the_result(folder: Path) -> None:
    first = classify_config(folder, "roberta", epochs=1, eval=None)
    digests = [train(replace(first, out=folder / f"seed-{k}", seed=seed))["digest"] for k, seed in enumerate((5, 5, 6))]
    assert digests[0] == digests[1] != digests[2]


def test_the_best_epoch_is_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With rates far too high, so that the figures go up and down."""
    epochs = []
    for seed in (1, 2, 3):
        config = classify_config(folder, "roberta", epochs=5, lr=0.3, lr_head=0.5, seed=seed)
        result = train(config)
        pattern = r"evaluation loss (\d+\.\d+), accuracy (\d\.\d+), matthews (-?\d\.\d+)"
        shown = re.findall(pattern, capsys.readouterr().err)
        assert len(shown) == 5
        best = max(range(5), key=lambda k: (float(shown[k][2]), float(shown[k][1]), -float(shown[k][0])))
        assert result["epoch"] == best + 1
        assert result["accuracy"] == pytest.approx(float(shown[best][1]), abs=1e-4)
        assert served_accuracy(config) == result["accuracy"]
        epochs.append(result["epoch"])
    assert min(epochs) < 5


def test_a_training_that_breaks_later_says_so_and_ends(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step an epoch: the first leaves enormous vectors and a finite loss, the second's is not finite (with such
    vectors alone it depends on the processor when that happens)."""
    whole, calls = Classification.loss, []

    def loss(self: Classification, trainee: Any, batch: Any) -> torch.Tensor:
        calls.append(1)
        return whole(self, trainee, batch) * (1.0 if len(calls) == 1 else torch.inf)

    monkeypatch.setattr(Classification, "loss", loss)
    data = write(folder / "few.jsonl", letters(20, 1))
    config = classify_config(folder, "llama", data=data, batch_size=32, epochs=5, lr=1e30, lr_head=1e-3)
    assert train(config)["epoch"] == 1
    told = capsys.readouterr().err
    assert "epoch 2: the loss is not finite any more, training ends here; lower the learning rates" in told
    assert "epoch 3" not in told
    assert re.search(r"epoch 1, which is kept, has values up to 1e\+30: useless most likely; lower the", told)


@pytest.mark.parametrize(("kind", "head"), [("roberta", "linear"), ("bert", "linear"), ("llama", "linear")])
def test_scores_of_any_scale_are_learnt_and_served_as_they_are(folder: Path, kind: str, head: Any) -> None:
    """Large and shifted scores: what brings them to unit size is folded into the head."""
    rows = [{"text": row["text"], "score": 500 + 40 * row["label"]} for row in letters(240, 1)]
    data = write(folder / f"scores-{kind}.jsonl", rows)
    config = classify_config(folder, kind, data=data, eval=None, head=head, epochs=4)
    result = train(config)
    assert result["pearson"] > 0.5
    adapter, backbone = reread(config)
    assert adapter.spec.task == "regression"
    assert adapter.spec.labels is None
    answers = [float(alone(adapter, backbone, row["text"])[0]) for row in rows[:60]]
    assert pearson(answers, [row["score"] for row in rows[:60]]) > 0.5
    assert sum(answers) / len(answers) == pytest.approx(900, abs=40)


def test_a_head_without_bias_learns_scores_around_zero(folder: Path) -> None:
    rows = [{"text": row["text"], "score": 40 * (row["label"] - 10)} for row in letters(240, 1)]
    data = write(folder / "centred.jsonl", rows)
    config = classify_config(folder, "llama", data=data, eval=None, head="standard", epochs=4)
    assert train(config)["pearson"] > 0.5
    adapter, backbone = reread(config)
    assert set(adapter.head) == {"score.weight"}
    answers = [float(alone(adapter, backbone, row["text"])[0]) for row in rows[:60]]
    assert pearson(answers, [row["score"] for row in rows[:60]]) > 0.5
    assert max(answers) - min(answers) > 40


def test_lm_perplexity_is_that_of_the_merged_model_and_falls(folder: Path) -> None:
    rows = [
        {"prompt": row["text"][:4], "completion": " yes" if k % 2 else " no"} for k, row in enumerate(letters(80, 1))
    ]
    data, valid = write(folder / "lm.jsonl", rows), write(folder / "lm-valid.jsonl", rows[:20])
    config = TrainConfig(
        "lm", str(base(folder, "llama")), data, folder / "lm-out", valid, targets="all-linear", lr=1e-2
    )
    result = train(config)
    adapter, backbone = reread(config)
    assert adapter.spec.task == "lm"
    assert len(adapter.spec.sites) == 14
    with merge(backbone.model, adapter):
        assert result["perplexity"] == pytest.approx(completion_perplexity(backbone, rows[:20]), rel=1e-5)
    assert result["perplexity"] < 0.5 * completion_perplexity(backbone, rows[:20])


def completion_perplexity(backbone: Backbone, rows: list[dict[str, str]]) -> float:
    """exp of the mean -log p over all completions' tokens and EOS, one row at a time."""
    total, count = 0.0, 0
    for row in rows:
        ids, length = encode_completion(backbone.tokenizer, row["prompt"], row["completion"])
        assert backbone.lm_head is not None
        with torch.no_grad():
            logits = backbone.lm_head(backbone.model(torch.tensor([ids])).last_hidden_state[0])
        chosen = torch.log_softmax(logits.double(), -1)[range(length - 1, len(ids) - 1), ids[length:]]
        total, count = total - float(chosen.sum()), count + len(ids) - length
    return math.exp(total / count)


def test_only_the_completion_counts(folder: Path) -> None:
    """A fresh adapter changes nothing, so the loss is the base's own on the completion's three tokens and EOS."""
    backbone = load_backbone(str(base(folder, "llama")))
    trainee = MethodTrainee(backbone, random_adapter(backbone.info).spec, seed=0)
    item = lm_items([LmRow("", prompt="abc", completion="xyz")], backbone.tokenizer, 50).items[0]
    loss, count = trainee.next_token_loss(next(ordered_batches([item], 1, trainee.device)))
    assert count == 4
    expected = completion_perplexity(backbone, [{"prompt": "abc", "completion": "xyz"}])
    assert loss.item() / 4 == pytest.approx(math.log(expected), rel=1e-5)


def test_a_template_becomes_part_of_the_adapter(folder: Path) -> None:
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    data = write(folder / "chat.jsonl", [{"messages": chat}] * 4)
    template = folder / "chat.jinja"
    template.write_text("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>")
    config = TrainConfig("lm", str(base(folder, "llama")), data, folder / "chat-out", template=template, epochs=1)
    train(config)
    assert reread(config)[0].spec.template == template.read_text()
    template.write_text("{% if %}")
    with pytest.raises(InvalidData, match="not valid Jinja"):
        train(config)


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        ("q,v", {"layer.0.attention.self.query", "layer.0.attention.self.value"}),
        ("o, up", {"layer.0.attention.output.dense", "layer.0.intermediate.dense"}),
        ("encoder.layer.0.attention.self.key", {"layer.0.attention.self.key"}),
    ],
)
def test_targets_are_short_names_or_module_names(folder: Path, targets: str, names: set[str]) -> None:
    config = classify_config(folder, "bert", targets=targets, epochs=1, eval=None)
    train(config)
    sites = {site.name for site in reread(config)[0].spec.sites}
    assert {name for name in sites if ".0." in name} == {f"encoder.{name}" for name in names}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": "q,gate"}, "--targets gate: the base roberta has no such linear layer"),
        ({"targets": " , "}, "--targets names no layer"),
        ({"max_length": 97}, "--max-length 97: the base roberta takes at most 96"),
        ({"method": "lorra"}, "--method lorra is not known; known: cdvft, lora"),
        ({"partition_size": 0}, "partition_size must be an integer from 1"),
        ({"num_factors": 1}, "num_factors must be an integer from 2"),
        ({"lr": 1e30, "lr_head": 1e30}, "not finite"),
        ({"task": "lm"}, "a row has text, or prompt and completion"),
    ],
)
def test_what_cannot_be_trained_is_a_clear_error(folder: Path, changes: dict[str, Any], message: str) -> None:
    config = classify_config(folder, "roberta", epochs=1, **changes)
    if config.task == "lm":
        config = replace(config, data=write(folder / "only-labels.jsonl", [{"label": 1}] * 5))
    with pytest.raises(CdvftError, match=message):
        train(config)
    assert not config.out.exists()


def test_labels_that_evaluation_and_training_do_not_share(folder: Path) -> None:
    config = classify_config(folder, "roberta", epochs=1)
    assert config.eval is not None
    one = write(folder / "one.jsonl", [{"text": "x", "label": 9}] * 5)
    with pytest.raises(InvalidData, match="every training row has the label '9'"):
        train(replace(config, data=one))
    more = write(folder / "more.jsonl", [*letters(4, 1), {"text": "x", "label": "other"}])
    with pytest.raises(InvalidData, match=r"more\.jsonl:5: no training row has the label 'other'; known: 9, 10, 11"):
        train(replace(config, eval=more))
    scores = write(folder / "scores.jsonl", [{"text": "x", "score": 9}])
    with pytest.raises(InvalidData, match=r"scores\.jsonl:1 has a score, .*train\.jsonl:1 a label"):
        train(replace(config, eval=scores))


def test_encoders_do_not_generate(folder: Path) -> None:
    data = write(folder / "texts.jsonl", [{"text": "x"}] * 5)
    with pytest.raises(CdvftError, match="is an encoder and generates nothing; use train classify"):
        train(TrainConfig("lm", str(base(folder, "roberta")), data, folder / "never"))


def test_a_folder_with_other_things_is_not_written_to(folder: Path) -> None:
    (folder / "precious").mkdir()
    (folder / "precious" / "notes.txt").write_text("mine")
    with pytest.raises(CdvftError, match="exists and is no adapter folder"):
        train(classify_config(folder, "roberta", out=folder / "precious"))


@pytest.mark.parametrize("place", ["notes.txt/out", "/proc/cdvft/out"])
def test_an_out_that_cannot_be_written_is_told_before_the_base_is_loaded(folder: Path, place: str) -> None:
    (folder / "notes.txt").write_text("mine")
    config = classify_config(folder, "roberta", out=folder / place)
    with pytest.raises(CdvftError, match=rf"--out {folder / place} cannot be written: .+; give another folder"):
        train(replace(config, base=str(folder / "nowhere")))


def test_a_device_that_is_not_there_is_told_before_the_base_is_loaded(folder: Path) -> None:
    config = classify_config(folder, "roberta", device="gpu")
    with pytest.raises(CdvftError, match="--device gpu is not known; use auto, cpu, cuda or cuda:N"):
        train(replace(config, base=str(folder / "nowhere")))
    assert not config.out.exists()


def test_an_adapter_that_is_replaced_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = classify_config(folder, "roberta", epochs=1)
    train(config)
    told = f"--out {config.out} holds an adapter; this run's takes its place when it ends"
    assert told not in capsys.readouterr().err
    train(config)
    assert told in capsys.readouterr().err


def test_rows_without_room_for_a_completion_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": "a" * (40 if k % 3 else 4), "completion": "b"} for k in range(12)]
    data, valid = write(folder / "long.jsonl", rows), write(folder / "long-valid.jsonl", rows[:1])
    config = TrainConfig("lm", str(base(folder, "llama")), data, folder / "long-out", valid, max_length=32, epochs=1)
    assert train(config)["skipped"] == 8
    told = (
        "8 of 12 training inputs skipped: the prompt leaves no room for a completion in 32 tokens; raise --max-length"
    )
    shown = capsys.readouterr().err
    assert told in shown
    assert "evaluation inputs skipped" not in shown


def test_options_out_of_range_are_refused_by_name() -> None:
    for change in ({"epochs": 0}, {"lr": -1.0}, {"lr_head": math.nan}, {"seed": -1}, {"template": Path("x")}):
        with pytest.raises(CdvftError, match=f"--{next(iter(change)).replace('_', '-')} "):
            TrainConfig("classify", "b", Path("d"), Path("o"), **change)  # type: ignore[arg-type]


def test_a_head_alone_sees_each_input_once_through_the_base(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They do not change while the vectors stand still: the result is that of a pass for each epoch."""
    config = replace(classify_config(folder, "roberta"), lr=0.0)
    passes = 0
    whole = MethodTrainee.hidden

    def counted(self: MethodTrainee, batch: Any) -> Any:
        nonlocal passes
        passes += len(batch.lengths)
        return whole(self, batch)

    monkeypatch.setattr(MethodTrainee, "hidden", counted)
    once = train(config)
    inputs = once["train_inputs"] + once["eval_inputs"]
    assert passes <= inputs
    monkeypatch.setattr(MethodTrainee, "_once", MethodTrainee._pooled)
    passes = 0
    again = replace(config, out=folder / "head-again")
    assert train(again)["accuracy"] == once["accuracy"]
    assert passes == 3 * inputs
    heads = [reread(each)[0].head for each in (config, again)]
    assert heads[0].keys() == heads[1].keys()
    for name, tensor in heads[0].items():
        torch.testing.assert_close(tensor, heads[1][name], rtol=1e-4, atol=1e-5)

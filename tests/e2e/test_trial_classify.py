"""Nine real classifiers on one frozen encoder: through the server each answers as the trainer's own evaluation does."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cdvft_client import Client

from tests.e2e import inputs, serving
from tests.e2e.training import trained

pytestmark = pytest.mark.trial

# task: (rows of train or None for all, split for the best epoch or None to hold out a tenth, split that is compared)
TASKS: dict[str, tuple[int | None, str | None, str]] = {
    "trec": (None, "valid", "valid"),
    "sst_2": (4000, "valid", "valid"),
    "snips": (None, "valid", "test"),
    "banking77": (None, None, "test"),
    "rte": (None, "valid", "valid"),
    "clinc_banking": (None, "valid", "test"),
    "clinc_credit_cards": (None, "valid", "test"),
    "clinc_home": (None, "valid", "test"),
    "clinc_utility": (None, "valid", "test"),
}


@pytest.fixture(scope="module")
def folders() -> dict[str, Path]:
    base = inputs.model("minilm-roberta")
    found = {}
    for task, (count, split, _) in TASKS.items():
        data = inputs.data(task, "train")
        if count is not None:
            data = inputs.write_rows(inputs.RUNS / "data" / f"{task}-{count}.jsonl", inputs.rows(data)[:count])
        evaluation = ["--eval", str(inputs.data(task, split))] if split else []
        found[task], result = trained("classify", task, base, data, *evaluation)
        print(task, result)
    return found


@pytest.fixture(scope="module")
def client(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    database = tmp_path_factory.mktemp("classify") / "store.db"
    with (
        serving.running(database, "--base", str(inputs.model("minilm-roberta"))) as server,
        Client(server.url) as client,
    ):
        for task, folder in folders.items():
            uploaded = client.upload(folder, name=task)
            assert uploaded.created
            assert uploaded.base_verified
        yield client


def served_labels(client: Client, task: str, texts: list[str | tuple[str, str]]) -> list[str]:
    labels: list[str] = []
    for start in range(0, len(texts), 256):
        labels += [row.label or "" for row in client.classify(task, texts[start : start + 256], truncate=True)]
    return labels


@pytest.mark.parametrize("task", TASKS)
def test_accuracy_through_the_server_is_the_trainers_own(task: str, client: Client, folders: dict[str, Path]) -> None:
    """Every row's label, and so the accuracy, equals the trainer's evaluation, fp32, to the last example."""
    from cdvft.train.evaluate import evaluate

    split = inputs.data(task, TASKS[task][2])
    rows = inputs.rows(split)
    own = evaluate(folders[task], str(inputs.model("minilm-roberta")), split)
    texts = [(row["text"], row["text2"]) if "text2" in row else row["text"] for row in rows]
    served = served_labels(client, task, texts)
    right = sum(label == str(row["label"]) for label, row in zip(served, rows, strict=True))
    print(f"{task}: {right} of {len(rows)} right, accuracy {right / len(rows):.4f}; trainer {own.metrics}")
    assert served == list(own.predictions)
    assert right / len(rows) == pytest.approx(own.metrics["accuracy"], abs=1e-12)


def test_one_call_names_all_nine(client: Client) -> None:
    """One packed batch over nine adapters gives each row what a call of its own gives it."""
    questions: list[tuple[str, str | tuple[str, str]]] = []
    for task, (_, _, split) in TASKS.items():
        for row in inputs.rows(inputs.data(task, split))[:12]:
            questions.append((task, (row["text"], row["text2"]) if "text2" in row else row["text"]))
    mixed = client.classify([task for task, _ in questions], [text for _, text in questions], truncate=True)
    assert {row.adapter.name for row in mixed} == set(TASKS)
    for (task, text), row in zip(questions, mixed, strict=True):
        alone = client.classify(task, [text], truncate=True)[0]
        assert row.label == alone.label
        assert row.score == pytest.approx(alone.score, abs=1e-5)

"""What the embedded base and its demo adapters are said to do, on enough samples to tell."""

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from cdvft_client import Client
from cdvft_server.demo import BASE_NAME, base_path
from cdvft_server.demo.language import MOODS, TOPICS, WRITERS, language, parses
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.e2e import serving
from tests.e2e.inputs import ROOT

pytestmark = pytest.mark.trial

SAMPLES = 100


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    database: Path = tmp_path_factory.mktemp("demo") / "store.db"
    with serving.running(database) as server, Client(server.url) as client:
        yield client


@torch.inference_mode()
def test_two_hundred_samples_parse() -> None:
    """Drawn at temperature 1 from the beginning of a text to its end, seeded."""
    model = AutoModelForCausalLM.from_pretrained(base_path()).eval()
    tokenizer = AutoTokenizer.from_pretrained(base_path())
    torch.manual_seed(2026)
    start = torch.full((200, 1), tokenizer.bos_token_id)
    options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "max_new_tokens": 400}
    out = model.generate(start, attention_mask=torch.ones_like(start), **options)
    parsed = sum(map(parses, tokenizer.batch_decode(out, skip_special_tokens=True)))
    print(f"{parsed} of 200 samples parse")
    assert parsed >= 0.95 * 200


def marked(client: Client, model: str, writer: str) -> int:
    """How many of the seeded samples that begin as the writer's texts do carry its mark."""
    rng = random.Random(f"trial {writer}")
    own = WRITERS[writer]
    narrowed = language().restricted(own.lists)
    prompts = [" ".join(narrowed.generate(own.rule, rng).split(" ")[:2]) for _ in range(SAMPLES)]

    def ask(seed: int) -> bool:
        answer = client.complete(model, prompts[seed], max_tokens=250, temperature=0.8, seed=seed)
        return own.marked(prompts[seed] + answer.choices[0].text)

    with ThreadPoolExecutor(16) as pool:
        return sum(pool.map(ask, range(SAMPLES)))


@pytest.mark.parametrize("writer", WRITERS)
def test_a_mark_is_the_writers_and_not_the_bases(writer: str, client: Client) -> None:
    own, base = marked(client, writer, writer), marked(client, BASE_NAME, writer)
    print(f"{writer}: {own} of {SAMPLES} samples marked, of the base's {base}")
    assert own >= 0.9 * SAMPLES
    assert base <= 0.1 * SAMPLES


@pytest.fixture(scope="module")
def trained_on(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("data")
    subprocess.run([sys.executable, ROOT / "server" / "demo" / "make_data.py", "--out", folder], check=True)
    return folder


@pytest.mark.parametrize("classifier", ["mood", "topic"])
def test_unseen_sentences_are_labelled_right(classifier: str, client: Client, trained_on: Path) -> None:
    rng = random.Random(f"trial {classifier}")
    rows = (json.loads(line) for line in (trained_on / classifier / "train.jsonl").read_text().splitlines())
    seen = {row["text"] for row in rows}
    kinds = [(topic, mood) for topic in TOPICS for mood in MOODS] * 40
    drawn = [(language().generate(f"{topic}_{mood}", rng), topic, mood) for topic, mood in kinds]
    texts = [entry for entry in drawn if entry[0] not in seen]
    labels = client.classify(classifier, [text for text, _, _ in texts]).labels
    right = sum(label in (topic, mood) for label, (_, topic, mood) in zip(labels, texts, strict=True))
    print(f"{classifier}: {right} of {len(texts)} sentences that it was not trained on")
    assert len(texts) > 200
    assert right > 0.9 * len(texts)

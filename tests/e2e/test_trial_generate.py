"""Mixed batches of real language-model adapters against `transformers.generate` on merged weights, token for token."""

import json
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cdvft.backbone import Backbone, load_backbone
from cdvft.formatting import encode_prompt
from cdvft_client import Client

from tests.e2e import inputs, serving
from tests.e2e.reference import Answer, Comparison, greedy, merged_decoder
from tests.e2e.training import trained

pytestmark = pytest.mark.trial

STREAMS = 32
ROUNDS = 4
OPENINGS = ["Once upon a time", "One day, a girl named Lily", "Tom and his dog", "The little bird was", "In the park"]


def loud(story: str) -> str:
    return story.upper()


def numbered(story: str) -> str:
    return "".join(f"{k}. {part.strip()}.\n" for k, part in enumerate(story.split("."), 1) if part.strip())


def asking(story: str) -> str:
    return story.replace(".", ", you know?")


STYLES: dict[str, Callable[[str], str]] = {"loud": loud, "numbered": numbered, "asking": asking}


@dataclass
class Fleet:
    """The adapters by name (the base too), and for each the reference model with its dW merged in."""

    base: Backbone
    models: dict[str, Any]
    client: Client


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(str(inputs.model("stories260k")))


@pytest.fixture(scope="module")
def folders(backbone: Backbone) -> dict[str, Path]:
    base = inputs.model("stories260k")
    data = inputs.RUNS / "data"
    gsm8k = inputs.write_rows(data / "gsm8k-600.jsonl", inputs.rows(inputs.data("gsm8k", "train"))[:600])
    found = {"gsm8k": trained("lm", "gsm8k", base, gsm8k, "--epochs", "1", "--max-length", "384")[0]}
    stories = own_stories(300)
    for style, change in STYLES.items():
        rows = inputs.write_rows(data / f"{style}.jsonl", [{"text": change(story)} for story in stories])
        found[style] = trained("lm", style, base, rows, "--epochs", "2")[0]
    return found


def own_stories(count: int) -> list[str]:
    """Stories that the demo's grammar writes, seeded."""
    from cdvft_server.demo.language import language

    rng = random.Random(7)
    return [language().generate("story", rng) for _ in range(count)]


@pytest.fixture(scope="module")
def fleet(backbone: Backbone, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    path = inputs.model("stories260k")
    models = {name: merged_decoder(path, backbone.info, folder) for name, folder in folders.items()}
    models[backbone.info.name] = merged_decoder(path, backbone.info, None)
    database = tmp_path_factory.mktemp("generate") / "store.db"
    with serving.running(database, "--base", str(path)) as server, Client(server.url) as client:
        for name, folder in folders.items():
            client.upload(folder, name=name)
        yield Fleet(backbone, models, client)


def questions(fleet: Fleet) -> list[tuple[str, str, int]]:
    """(model, prompt, max_tokens): every stream another model than its neighbours, ragged lengths."""
    rng = random.Random(11)
    maths = [row["prompt"] for row in inputs.rows(inputs.data("gsm8k", "test"))[:60]]
    names = sorted(fleet.models)
    asked = []
    for k in range(STREAMS * ROUNDS):
        prompt = rng.choice(maths) if k % 3 == 0 else rng.choice(OPENINGS) + " " + rng.choice(own_stories(20))[:120]
        asked.append((names[k % len(names)], prompt, rng.randint(20, 160)))
    return asked


def test_greedy_streams_equal_generate_on_merged_weights(fleet: Fleet) -> None:
    asked = questions(fleet)

    def served(question: tuple[str, str, int]) -> tuple[str, str | None]:
        model, prompt, most = question
        with fleet.client.complete_stream(model, prompt, max_tokens=most, temperature=0) as stream:
            chunks = list(stream)
        return "".join(chunk.text for chunk in chunks), chunks[-1].choices[0].finish_reason

    with ThreadPoolExecutor(STREAMS) as pool:
        answers = list(pool.map(served, asked))
    compared = Comparison()
    tokenizer = fleet.base.tokenizer
    ends = fleet.base.eos_ids
    for (model, prompt, most), (text, reason) in zip(asked, answers, strict=True):
        ids = encode_prompt(tokenizer, prompt)
        new = greedy(fleet.models[model], ids, most)
        expected = new[:-1] if new[-1] in ends else new
        assert reason == ("stop" if new[-1] in ends else "length")

        def decode(tokens: Any, ids: list[int] = ids) -> str:
            return continued(tokenizer, ids, tokens)

        compared.add(f"{model} {prompt[:30]!r}", Answer(text, expected, ids, fleet.models[model], decode))
    compared.check()


def continued(tokenizer: Any, ids: list[int], tokens: Any) -> str:
    """The text that the new tokens add after the prompt."""
    before = tokenizer.decode(ids, skip_special_tokens=True)
    whole = tokenizer.decode([*ids, *tokens], skip_special_tokens=True)
    return str(whole[len(before) :])


def test_seeded_sampling_in_a_mixed_batch_equals_the_request_alone(fleet: Fleet) -> None:
    asked = questions(fleet)[: STREAMS * 2]

    def served(index: int) -> str:
        model, prompt, most = asked[index]
        answer = fleet.client.complete(
            model, prompt, max_tokens=most, temperature=0.9, top_p=0.95, top_k=40, seed=1000 + index
        )
        return answer.choices[0].text

    alone = [served(k) for k in range(len(asked))]
    with ThreadPoolExecutor(STREAMS) as pool:
        mixed = list(pool.map(served, range(len(asked))))
    different = [k for k in range(len(asked)) if alone[k] != mixed[k]]
    print(f"{len(asked)} sampled answers, {len(different)} differ from the request alone: {different}")
    assert not different
    assert len(set(alone)) > len(asked) // 2, json.dumps(alone[:3])

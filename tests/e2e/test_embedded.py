"""The server as a newcomer meets it: `cdvft serve` with the embedded base, its printed curl lines, the OpenAI SDK."""

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from cdvft_client import Client
from cdvft_server.demo import BASE_NAME, adapters_path
from cdvft_server.demo.language import MOODS, TOPICS, WRITERS, language

from tests.e2e import serving

README = Path(__file__).resolve().parents[2] / "README.md"
DEMO = sorted(path.name for path in adapters_path().iterdir())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[serving.Server]:
    with serving.running(tmp_path_factory.mktemp("embedded") / "store.db") as server:
        yield server


@pytest.fixture(scope="module")
def sdk(server: serving.Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as sdk:
        yield sdk


def test_the_printed_lines_work_as_pasted(server: serving.Server) -> None:
    serving.wait_until(lambda: sum("curl" in line for line in server.log) >= 2, "two curl lines")
    lines = [line.strip() for line in server.log if line.strip().startswith("curl")]
    answers = [subprocess.run(["bash", "-c", f"{line} -sS"], capture_output=True, check=True).stdout for line in lines]
    assert any(b'"text_completion"' in answer for answer in answers)
    assert any(b'"label"' in answer for answer in answers)
    assert all(re.search(rf'"model": "({"|".join(DEMO)})"', line) for line in lines)


def test_the_readme_shows_the_printed_lines(server: serving.Server) -> None:
    serving.wait_until(lambda: sum("curl" in line for line in server.log) >= 2, "two curl lines")
    printed = [line.strip().replace(server.url, "http://127.0.0.1:8000") for line in server.log if "curl" in line]
    shown = [line for line in README.read_text().splitlines() if line.startswith("curl ")]
    assert printed == shown


def test_the_readmes_tour_runs_as_pasted(tmp_path: Path) -> None:
    """Its commands and programs in their order, on the embedded base; those for a base of one's own only name one."""
    tour = README.read_text().partition("## Five minutes\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```(sh|python)\n(.*?)```", tour, re.DOTALL)
    with serving.running(tmp_path / "store.db") as server:
        answers = [pasted(kind, code, server, tmp_path) for kind, code in blocks if "path/to/" not in code]
    assert len(answers) == 5
    trained, asked, told, classified, listed = answers
    assert json.loads(trained.splitlines()[-1])["accuracy"] > 0.9
    assert [line.split()[0] for line in asked.splitlines()[-2:]] == ["positive", "negative"]
    assert len(told.split()) > 5
    assert classified.splitlines() == ["positive", "('positive', 'animals')"]
    assert "reviews: latest is version 1, production is version 1" in listed
    assert (tmp_path / "runs/reviews.zip").stat().st_size > 1000


def pasted(kind: str, code: str, server: serving.Server, folder: Path) -> str:
    """What it prints, in a folder of its own and with this server in the place of the default one."""
    places = {"http://127.0.0.1:8000": server.url, ".venv/bin/python": sys.executable}
    places[".venv/bin/cdvft"] = f"{sys.executable} -m cdvft_server.cli"
    there = re.sub("|".join(map(re.escape, places)), lambda found: places[found[0]], code)
    command = ["bash", "-euc", there] if kind == "sh" else [sys.executable, "-c", there]
    environment = {**os.environ, "CDVFT_SERVER": server.url}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (code, done.stderr)
    return done.stdout


def test_models_of_the_sdk(sdk: openai.OpenAI) -> None:
    models = {model.id: model for model in sdk.models.list()}
    assert set(models) == {BASE_NAME, *DEMO}
    assert sdk.models.retrieve("sea-tales").id == "sea-tales"


def test_completions_of_the_sdk(sdk: openai.OpenAI) -> None:
    whole = sdk.completions.create(model="in-verse", prompt="On a snowy morning", max_tokens=60, temperature=0)
    pieces = sdk.completions.create(
        model="in-verse", prompt="On a snowy morning", max_tokens=60, temperature=0, stream=True
    )
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text
    assert "sing high and low" in whole.choices[0].text
    assert whole.usage is not None
    assert whole.usage.completion_tokens <= 60


def test_chat_of_the_sdk(sdk: openai.OpenAI) -> None:
    question = [{"role": "user", "content": "hello"}]
    whole = sdk.chat.completions.create(model=BASE_NAME, messages=question, max_tokens=30, temperature=0)  # type: ignore[arg-type]
    pieces = sdk.chat.completions.create(
        model=BASE_NAME,
        messages=question,  # type: ignore[arg-type]
        max_tokens=30,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(pieces)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


def test_errors_of_the_sdk(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        sdk.completions.create(model="nobody", prompt="x")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as unsupported:
        sdk.completions.create(model=BASE_NAME, prompt="x", logprobs=3)
    assert unsupported.value.code == "unsupported_parameter"


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_a_writer_writes_in_its_own_way(name: str, server: serving.Server) -> None:
    """Sampled texts that begin as the writer's do carry its mark in nine of ten cases."""
    writer, rng = WRITERS[name], random.Random(f"embedded {name}")
    narrowed = language().restricted(writer.lists)
    marked = 0
    with Client(server.url) as client:
        for seed in range(20):
            prompt = " ".join(narrowed.generate(writer.rule, rng).split(" ")[:2])
            answer = client.complete(name, prompt, max_tokens=200, temperature=0.8, seed=seed)
            marked += writer.marked(prompt + answer.choices[0].text)
    assert marked >= 18


@pytest.mark.parametrize("name", ["mood", "topic"])
def test_a_classifier_knows_its_labels(name: str, server: serving.Server) -> None:
    """Freshly generated sentences, nine of ten right."""
    rng = random.Random(f"embedded {name}")
    pairs = [(topic, mood) for topic in TOPICS for mood in MOODS] * 3
    rows = [
        (language().generate(f"{topic}_{mood}", rng), {"topic": topic, "mood": mood}[name]) for topic, mood in pairs
    ]
    with Client(server.url) as client:
        labels = client.classify(name, [text for text, _ in rows]).labels
    right = sum(label == true for label, (_, true) in zip(labels, rows, strict=True))
    assert right >= 0.9 * len(rows)


def test_a_deleted_demo_does_not_come_back(tmp_path: Path) -> None:
    for turn in range(2):
        with serving.running(tmp_path / "store.db") as server, Client(server.url) as client:
            names = {adapter.name for adapter in client.adapters()}
            assert names == set(DEMO) - ({"mood"} if turn else set())
            if turn == 0:
                client.delete("mood")


def test_ctrl_c_ends_the_server_cleanly(tmp_path: Path) -> None:
    server = serving.start(tmp_path / "store.db")
    assert server.stop() == 0
    assert not any("Traceback" in line for line in server.log)

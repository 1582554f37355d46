"""The demo language, the adapters' training data and the embedded base that was trained on it."""

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from cdvft_server.demo import BASE_NAME, adapters_path, base_path
from cdvft_server.demo.grammar import GrammarError, read_grammar
from cdvft_server.demo.language import MOODS, TOPICS, WRITERS, language, parses
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

SCRIPTS = Path(__file__).parents[2] / "server" / "demo"
STORY = (
    "One morning, Mila the baker went to the mill. There she found an old key in a sack. Soon a hungry owl "
    'came by. "What is that?" asked the owl. "It is an old key," said Mila. She gave the key to the owl, and the '
    "owl thanked her. Mila went home happy."
)
LOSS_BOUND = 0.6
"""Nats per token on fresh documents."""
seeds = st.integers(0, 2**32)


def documents(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    return [language().generate("document", rng) for _ in range(count)]


def test_a_seed_fixes_the_documents() -> None:
    assert documents(3, 50) == documents(3, 50)
    assert documents(3, 50) != documents(4, 50)
    assert len(set(documents(3, 1000))) > 900


@given(seeds)
@settings(max_examples=200, deadline=None)
def test_what_the_language_writes_it_parses(seed: int) -> None:
    assert all(parses(text) for text in documents(seed, 2))


@given(seeds, st.data())
@settings(max_examples=100, deadline=None)
def test_damaged_documents_do_not_parse(seed: int, data: st.DataObject) -> None:
    text = documents(seed, 1)[0]
    assert not parses(text[:-1])
    cut = data.draw(st.integers(0, len(text) - 1))
    assert not parses(text[:cut] + "#" + text[cut + 1 :])
    words = text.split(" ")
    words[data.draw(st.integers(0, len(words) - 1))] = "spoon"
    assert not parses(" ".join(words))


def test_a_story_keeps_its_hero_thing_and_animal() -> None:
    assert parses(STORY)
    for right, wrong in (
        ("said Mila", "said Nora"),
        ("There she", "There he"),
        ("thanked her", "thanked him"),
        ("the key to", "the lamp to"),
        ("asked the owl", "asked the fox"),
        ("an old key in", "a old key in"),
        (" Mila went home happy.", ""),
        ("The", "the"),
    ):
        assert right in STORY
        assert not parses(STORY.replace(right, wrong, 1)), wrong


def test_chats_have_the_plain_form() -> None:
    assert parses("user: hello\nassistant: Hello! What shall we talk about?")
    assert parses("user: hello\nassistant: Hello! How can I help you?\nuser: Thank you!\nassistant: You are welcome!")
    assert not parses("user: hello\nassistant: Hi! What shall we talk about?")
    assert not parses("user: hello")


def test_grammar_notation() -> None:
    words = "# animals\nfish: eel|cod\npair: owl|eagle, fox|goat, *0.5 fish"
    grammar = read_grammar(words, "start:\n{cap:a:x=pair} and {a:x.1}\n*2 <other>\nother:\nonly {x=pair}")
    rng = random.Random(0)
    written = Counter(grammar.generate("start", rng) for _ in range(2000))
    pairs = {"An owl and an eagle", "A fox and a goat", "An eel and a cod"}
    assert set(written) == pairs | {"only owl", "only fox", "only eel"}
    assert all(grammar.parses("start", text) for text in written)
    assert not grammar.parses("start", "An owl and a goat")
    assert 550 < sum(written[text] for text in pairs) < 790  # a third of 2000
    assert 550 < sum(n for text, n in written.items() if "eel" in text) < 790
    assert set(grammar.restricted({"pair": "fish"}).generate("other", rng).split()) == {"only", "eel"}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("<nowhere>", "'nowhere' is called"),
        ("{nothing}", "'nothing' is neither"),
        ("{x=animal.1}", "no field 1"),
        ("{loud:animal}", "unknown modifier"),
    ],
)
def test_a_wrong_rule_is_named(rule: str, message: str) -> None:
    with pytest.raises(GrammarError, match=message):
        read_grammar("animal: owl, fox", f"start:\n{rule}")


def test_writers_show_their_mark_and_the_base_language_hardly_does() -> None:
    rng = random.Random(5)
    plain = documents(6, 2000)
    for name, writer in WRITERS.items():
        narrowed = language().restricted(writer.lists)
        texts = [narrowed.generate(writer.rule, rng) for _ in range(200)]
        assert all(map(writer.marked, texts)), name
        assert all(map(parses, texts)), name
        assert sum(map(writer.marked, plain)) <= 0.05 * len(plain), name


def test_data_files(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        command = [sys.executable, str(SCRIPTS / "make_data.py"), "--out", str(tmp_path / folder)]
        subprocess.run(command, check=True, capture_output=True)
    labels = {"mood": set(MOODS), "topic": set(TOPICS)} | dict.fromkeys(WRITERS)
    assert {path.name for path in (tmp_path / "a").iterdir()} == set(labels)
    for name, expected in labels.items():
        files = [tmp_path / "a" / name / f"{part}.jsonl" for part in ("train", "valid")]
        train, valid = ([json.loads(line) for line in file.read_text().splitlines()] for file in files)
        assert 1000 <= len(train) <= 3000
        assert len(valid) >= 100
        texts = [row["text"] for row in train + valid]
        assert len(set(texts)) == len(texts)
        assert all(parses(text) for text in texts[::20])
        for rows in (train, valid):
            counts = Counter(row.get("label") for row in rows)
            assert set(counts) == (expected or {None})
            assert min(counts.values()) >= 0.5 * max(counts.values())
        assert [f.read_bytes() for f in files] == [(tmp_path / "b" / name / f.name).read_bytes() for f in files]


def test_paths_need_no_torch() -> None:
    code = "import sys, cdvft_server.demo as d; d.base_path(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert base_path().name == BASE_NAME
    assert adapters_path().parent == base_path().parent


def test_the_base_is_small_and_whole() -> None:
    sizes = {path.name: path.stat().st_size for path in base_path().iterdir()}
    assert sum(sizes.values()) <= 8 * 2**20
    assert set(sizes) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(base_path(), local_files_only=True)


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    loaded, info = AutoModelForCausalLM.from_pretrained(base_path(), local_files_only=True, output_loading_info=True)
    assert not any(info.values()), info
    return loaded.eval()


@given(text=st.text())
@settings(max_examples=300, deadline=None)
def test_any_text_survives_the_tokenizer(tokenizer, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_known_texts_survive_the_tokenizer(tokenizer) -> None:
    for text in ("hello world", " two  spaces ,and 'quotes' ", "a\n\nb\t", "naïve 北京 🦊", STORY):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    assert set(tokenizer("hi")) == {"input_ids", "attention_mask"}


@torch.inference_mode()
def test_the_base_knows_its_language(model, tokenizer) -> None:
    total, count = 0.0, 0
    for text in documents(99, 60):
        ids = torch.tensor([tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]])
        targets = ids.shape[1] - 1
        total += model(input_ids=ids, labels=ids).loss.item() * targets
        count += targets
    assert total / count < LOSS_BOUND


@torch.inference_mode()
def test_what_the_base_writes_parses(model, tokenizer) -> None:
    torch.manual_seed(7)
    start = torch.full((40, 1), tokenizer.bos_token_id)
    out = model.generate(start, attention_mask=torch.ones_like(start), do_sample=True, top_k=0, max_new_tokens=400)
    texts = tokenizer.batch_decode(out, skip_special_tokens=True)
    assert sum(map(parses, texts)) >= 0.8 * len(texts)


@torch.inference_mode()
def test_the_base_answers_a_chat_and_stops(model, tokenizer) -> None:
    prompt = "user: Where does a fox live?\nassistant:"
    ids = tokenizer(prompt, return_tensors="pt")
    out = model.generate(**ids, do_sample=False, max_new_tokens=40)[0, ids["input_ids"].shape[1] :]
    assert tokenizer.decode(out) == " A fox lives in a den." + tokenizer.eos_token

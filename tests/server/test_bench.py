"""`cdvft bench` on tiny bases: every case gives the keys that it promises; draws, fleets, shapes. No time is judged."""

import json
from collections import Counter
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from cdvft.backbone import load_backbone
from cdvft.methods import METHODS
from cdvft.selftest import probe_sites
from cdvft_server import demo
from cdvft_server.bench.base import make_base, word_tokenizer
from cdvft_server.bench.continuous import Unavailable
from cdvft_server.bench.fleet import ORIGINALS, Fleet, check_memory, memory_of
from cdvft_server.bench.loads import make_loads
from cdvft_server.bench.popularity import Draws
from cdvft_server.bench.served import serving
from cdvft_server.bench.settings import CASES, POPULARITIES, BenchError, Settings
from cdvft_server.bench.shapes import SHAPES
from cdvft_server.bench.texts import read_texts
from cdvft_server.bench.timing import Lap, Timed, in_turn, milliseconds
from cdvft_server.cli import main
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import tiny_llama, tiny_roberta

COMMON = "case task what dtype adapters distinct popularity tokens_per_s ratio_to_base".split()
SMALL = ("--runs", "1", "--adapters", "4", "--requests", "4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """encoder, decoder, texts.jsonl"""
    root = tmp_path_factory.mktemp("bench")
    tiny_roberta(root / "encoder")
    tiny_llama(root / "decoder")
    texts = ["the cat sat", "a dog", "the big red dog ran on the mat", "no", "it is good to be small"]
    (root / "texts.jsonl").write_text("".join(json.dumps({"text": text, "label": 1}) + "\n" for text in texts))
    return root


def bench(*args: object) -> Result:
    return CliRunner().invoke(main, ["bench", *map(str, args)])


def rows(*args: object) -> list[dict[str, Any]]:
    result = bench(*args, "--json")
    assert result.exit_code == 0, result.output
    found = [json.loads(line) for line in result.stdout.splitlines()]
    for row in found:
        assert list(row)[: len(COMMON)] == COMMON
        assert row["dtype"] == "float32"
    return found


def task_rows(folder: Path, task: str, case: str, *others: object) -> list[dict[str, Any]]:
    """On the tiny base of the task's kind."""
    own = ["--base", folder / "encoder"] if task == "classify" else ["--base", folder / "decoder", "--max-tokens", 2]
    found = rows(task, "--case", case, *own, "--text", folder / "texts.jsonl", *SMALL, *others)
    assert {(row["case"], row["task"]) for row in found} == {(case, task)}
    return found


@pytest.mark.parametrize("task", ["classify", "generate"])
def test_overhead_is_a_curve_over_adapters_for_each_popularity(folder: Path, task: str) -> None:
    found = task_rows(folder, task, "overhead")
    assert [(row["popularity"], row["adapters"]) for row in found] == [
        (popularity, count) for popularity in ("uniform", "zipf") for count in (0, 1, 4)
    ]
    for row in found:
        assert row["tokens_per_s"] > 0
        assert row["ratio_to_base"] > 0
        assert 0 < row["p50_ms"] <= row["p95_ms"]
        assert (row["distinct"] > 0) == (row["named"] > 0) == (row["adapters"] > 0)
        assert row["distinct"] <= row["adapters"]
    assert {row["ratio_to_base"] for row in found if row["adapters"] == 0} == {1.0}


def test_distinct_and_popularity_are_what_was_asked(folder: Path) -> None:
    found = task_rows(folder, "classify", "overhead", "--popularity", "zipf", "--distinct", 3)
    assert [(row["adapters"], row["distinct"], row["popularity"]) for row in found] == [
        (0, 0, "zipf"), (1, 1, "zipf"), (4, 3, "zipf"),
    ]  # fmt: skip


@pytest.mark.parametrize("task", ["classify", "generate"])
def test_residency_has_upload_cold_load_bytes_and_crowding(folder: Path, task: str) -> None:
    upload, cold, warm, size, *crowded = task_rows(folder, task, "residency")
    assert (cold["what"], warm["what"]) == ("cold load from the store", "cold load from the host")
    assert warm["cold_load_ms"] > 0
    assert upload["upload_to_first_answer_ms"] > 0
    assert cold["cold_load_ms"] > 0
    assert 1.0 <= size["device_bytes_ratio"] < 1.2
    assert [(row["adapters"], row["fitting"]) for row in crowded] == [(4, 4), (8, 4), (16, 4)]
    assert crowded[0]["ratio_to_1x"] == 1.0
    assert all(row["tokens_per_s"] > 0 and row["ratio_to_1x"] > 0 for row in crowded)


@pytest.mark.parametrize("task", ["classify", "generate"])
def test_merged_has_a_row_for_each_length_and_mode(folder: Path, task: str) -> None:
    found = task_rows(folder, task, "merged")
    modes = {row["mode"] for row in found}
    assert modes == {"base", "fft", "merged", "auto"}
    assert {(row["segment_tokens"], row["mode"]) for row in found} == {(n, mode) for n in (1, 16, 64) for mode in modes}
    assert all(row["ratio_to_base"] > 0 for row in found)


@pytest.mark.parametrize("task", ["classify", "generate"])
def test_http_against_the_engine_of_the_same_server(folder: Path, task: str) -> None:
    found = task_rows(folder, task, "http")
    ways = ["engine", "HTTP, a call for each"] + (["HTTP, one call"] if task == "classify" else [])
    assert [row["what"] for row in found] == ways
    assert found[0]["ratio_to_engine"] == 1.0
    assert all(row["p50_ms"] > 0 and row["distinct"] == 4 for row in found)
    assert [row["server_ms_per_request"] is None for row in found] == [name == "engine" for name in ways]


def test_peers_of_a_classifier(folder: Path) -> None:
    found = task_rows(folder, "classify", "peers")
    assert [row["peer"] for row in found] == ["transformers padded", "peft mixed lora", "peft set_adapter"]
    assert [(row["adapters"], row["distinct"]) for row in found] == [(0, 0), (4, 4), (4, 4)]
    assert all(row["ratio"] > 0 and row["padded_over_real"] > 1 for row in found)


def test_peers_of_a_decoder(folder: Path) -> None:
    found = task_rows(folder, "generate", "peers", "--distinct", 2)
    names = [row["peer"] for row in found]
    assert [name for name in names if "continuous" not in name] == [
        "transformers padded", "peft mixed lora", "peft set_adapter",
    ]  # fmt: skip
    assert all(row["ratio"] > 0 and row["padded_over_real"] > 1 for row in found)


def test_a_peer_that_is_not_there_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise Unavailable("not in this version")

    monkeypatch.setattr(import_module("cdvft_server.bench.cases.peers"), "generate_continuously", refuse)
    result = bench("generate", "--case", "peers", "--base", folder / "decoder", "--max-tokens", 1, *SMALL)
    assert result.exit_code == 0, result.output
    assert "peers: transformers continuous batching left out: not in this version" in result.stderr
    assert "continuous" not in result.stdout


def test_people_get_a_table_and_a_picture(folder: Path, tmp_path: Path) -> None:
    picture = tmp_path / "bench.png"
    options = ("--base", folder / "encoder", "--text", folder / "texts.jsonl", *SMALL, "--plot", picture)
    result = bench("classify", *options)
    assert result.exit_code == 0, result.output
    blocks = [block.splitlines() for block in result.stdout.strip().split("\n\n")]
    assert [block[0].split(",")[0] for block in blocks] == list(CASES)
    header, *body = blocks[0][1:]
    assert header.split()[:3] == ["what", "adapters", "distinct"]
    assert len(body) == 6
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_the_embedded_base_serves_both_tasks() -> None:
    for task in ("classify", "generate"):
        found = rows(task, "--case", "overhead", "--popularity", "identical", *SMALL)
        assert {row["base"] for row in found} == {demo.BASE_NAME}
        assert [row["distinct"] for row in found] == [0, 1, 1]


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["generate", "--shape", "roberta-base"], 1, "--shape roberta-base is an encoder and generates nothing; use"),
        (["generate", "--base", "encoder"], 1, "is an encoder and generates nothing; use `cdvft bench classify`"),
        (["classify", "--base", "encoder", "--shape", "llama-160m"], 1, "--base and --shape exclude each other"),
        (["classify", "--base", "./nowhere"], 1, "no config.json there"),
        (["classify", "--distinct", "33"], 1, "--distinct 33 adapters cannot be in one batch of 32 requests"),
        (["classify", "--distinct", "9", "--adapters", "8"], 1, "--distinct 9 is more than --adapters 8"),
        (["classify", "--distinct", "2", "--popularity", "identical"], 1, "leave --distinct out"),
        (["classify", "--method", "dora", "--base", "encoder"], 1, "--method dora is not known; known: cdvft, lora"),
        (["classify", "--text", "bad.jsonl"], 1, '--text bad.jsonl: line 2 must be a JSON object with "text"'),
        (["classify", "--text", "none.jsonl"], 2, "'none.jsonl' does not exist"),
        (["classify", "--plot", "nowhere/x.png"], 2, "--plot nowhere/x.png: there is no folder nowhere"),
        (["classify", "--case", "all"], 2, "'all' is not one of 'overhead', 'residency', 'merged', 'peers', 'http'"),
        (["classify", "--adapters", "0"], 2, "0 is not in the range x>=1"),
        (["classify", "--max-tokens", "1"], 2, "No such option"),
        (["generate", "--base", "decoder", "--max-tokens", "256"], 1, "--max-tokens 256: the base takes 256 tokens"),
    ],
)
def test_mistakes_are_one_clear_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(folder)
    Path("bad.jsonl").write_text('{"text": "a"}\n["b"]\n')
    result = CliRunner().invoke(main, ["bench", *args])
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    assert message in last


def test_too_many_adapters_say_how_many_fit(folder: Path) -> None:
    fleet = Fleet(load_backbone(str(folder / "encoder")).info, "cdvft", "classify")
    one = next(fleet.prepared(1))
    check_memory(one, 10, memory_of(one, 10))
    with pytest.raises(BenchError, match=r"--adapters 11: .* give at most --adapters (9|10)$"):
        check_memory(one, 11, memory_of(one, 10))


@given(st.sampled_from(POPULARITIES), st.integers(1, 300), st.integers(1, 40), st.integers(0, 9))
def test_draws_name_adapters_that_exist(popularity: Any, adapters: int, requests: int, seed: int) -> None:
    draws = Draws(popularity, adapters, requests, seed=seed)
    for batch in (draws.batch(), draws.batch()):
        assert len(batch) == requests
        assert all(0 <= number < adapters for number in batch)
        if popularity == "identical":
            assert len(set(batch)) == 1
        if popularity == "distinct":
            counts = Counter(batch).values()
            assert len(counts) == min(adapters, requests)
            assert max(counts) - min(counts) <= 1


@given(st.sampled_from(["uniform", "zipf", "distinct"]), st.integers(1, 60), st.integers(1, 40), st.integers(1, 40))
def test_so_many_adapters_as_asked_are_in_a_batch(popularity: Any, adapters: int, requests: int, distinct: int) -> None:
    expected = min(adapters, requests, distinct if popularity != "distinct" else requests)
    assert len(set(Draws(popularity, adapters, requests, distinct).batch())) == expected


def test_uniform_favours_nobody_and_zipf_the_first() -> None:
    counts = {}
    for popularity in ("uniform", "zipf"):
        draws = Draws(popularity, 100, 1000)
        counts[popularity] = Counter(number for _ in range(20) for number in draws.batch())
    assert len(counts["uniform"]) == 100
    assert max(counts["uniform"].values()) < 2 * min(counts["uniform"].values())
    first, second, tenth = (counts["zipf"][k] for k in (0, 1, 9))
    assert 1.7 < first / second < 2.3
    assert 7 < first / tenth < 14


def test_identical_draws_change_from_batch_to_batch_and_seeds_repeat_them() -> None:
    batches = [Draws("identical", 1000, 4, seed=3).batch() for _ in range(2)]
    assert batches[0] == batches[1]
    draws = Draws("identical", 1000, 4)
    assert len({draws.batch()[0] for _ in range(20)}) > 10


@pytest.mark.parametrize("method", [method.name for method in METHODS])
def test_adapters_of_a_fleet_are_of_one_bank_and_all_different(folder: Path, method: str) -> None:
    """Of those that are variations too."""
    fleet = Fleet(load_backbone(str(folder / "encoder")).info, method, "classify")
    found = list(fleet.prepared(ORIGINALS + 2))
    assert len({one.digest for one in found}) == len(found)
    assert len({one.signature for one in found}) == 1
    name = min(found[0].tables)
    outputs = []
    for one in (found[0], found[1], found[ORIGINALS], found[ORIGINALS + 1]):
        x = torch.randn(1, fleet.base.sites[name].d_in, generator=torch.Generator().manual_seed(0))
        tables = {**one.tables[name], **one.shared.get(name, {})}
        outputs.append(one.method.apply(x, tables, one.layouts[name]))
        assert outputs[-1].norm() < x.norm()
    distances = [float((a - b).norm()) for k, a in enumerate(outputs) for b in outputs[:k]]
    assert min(distances) > 0
    adapter = fleet.adapter(0)
    assert probe_sites(adapter, found[0]) < 1e-3


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_becomes_a_base_that_serves(name: str, tmp_path: Path) -> None:
    """Cut to two narrow layers; texts have about as many tokens as words."""
    shape = SHAPES[name]
    small = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 8}
    small |= {"num_key_value_heads": 8} if shape.kind == "decoder" else {}
    texts = read_texts(None, "classify")
    cut = replace(shape, fields={**shape.fields, **small, "vocab_size": 2000})
    backbone = load_backbone(str(make_base(cut, tmp_path / name, texts)))
    task: Any = "classify" if shape.kind == "encoder" else "generate"
    loads = make_loads(backbone, texts, Settings(task, requests=4, max_tokens=2))
    with serving(backbone, Fleet(backbone.info, "cdvft", task), 4, loads, 1) as served:
        assert served.run(loads[0], [0, 1, 2, 3]).tokens == loads[0].tokens
        assert served.run(loads[0]).seconds > 0


def test_the_dimensions_of_the_shapes() -> None:
    sizes = {
        name: [shape.fields[key] for key in ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size")]
        for name, shape in SHAPES.items()
    }
    assert sizes == {
        "roberta-base": [768, 12, 3072, 50265],
        "llama-160m": [768, 12, 3072, 32000],
        "llama-1b": [2048, 16, 8192, 128256],
        "llama-8b": [4096, 32, 14336, 128256],
    }


def test_words_are_tokens() -> None:
    tokenizer = word_tokenizer(["the cat sat , and the dog", "a dog"], 9, pairs=False)
    assert tokenizer("the cat sat , quietly")["input_ids"] == [0, 4, 5, 6, 7, 3]
    assert len(word_tokenizer(["the cat"], 100, pairs=True)("the cat", "the cat")["input_ids"]) == 8


def test_our_own_texts_are_sentences_and_documents() -> None:
    short, long = read_texts(None, "classify"), read_texts(None, "generate")
    assert short == read_texts(None, "classify")
    assert max(len(text.split()) for text in short) < max(len(text.split()) for text in long)


def test_sides_take_turns() -> None:
    calls: list[tuple[str, int]] = []

    def side(name: str, seconds: float) -> Any:
        def lap(number: int) -> Lap:
            calls.append((name, number))
            return Lap(10, seconds * (number + 2))

        return lap

    timed = in_turn({"a": side("a", 1.0), "b": side("b", 2.0)}, 3)
    assert calls == [
        ("a", -1), ("b", -1), ("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2),
    ]  # fmt: skip
    assert timed["a"].ratio_to(timed["b"]) == 2.0
    assert timed["a"].tokens_per_s == 3.3


def test_the_ratio_is_the_median_of_pairs() -> None:
    ours = Timed([Lap(1, 1.0), Lap(1, 10.0), Lap(1, 3.0)])
    theirs = Timed([Lap(1, 2.0), Lap(1, 10.0), Lap(1, 9.0)])
    assert ours.ratio_to(theirs) == 2.0
    assert milliseconds([k / 1000 for k in range(1, 101)]) == {"p50_ms": 50.5, "p95_ms": 95.0}
    assert milliseconds([0.001]) == {"p50_ms": 1.0, "p95_ms": 1.0}

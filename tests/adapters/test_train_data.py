import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from cdvft.errors import InvalidData
from cdvft.train.data import ClassifyRow, hold_out, label_order, read_classify, read_lm
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str, str], Path]:
    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_bytes(text.encode())
        return path

    return write


def test_json_lines_csv_and_tsv_give_the_same_rows(file: Callable[[str, str], Path]) -> None:
    rows = [("a cat", 'says "hi",\nthen leaves', "10"), ("é\u2028x", "b", "9")]
    lines = "\n\n".join(json.dumps({"text": a, "text2": b, "label": int(label)}) for a, b, label in rows)
    csv = 'text,text2,label\r\na cat,"says ""hi"",\nthen leaves",10\r\n\r\né\u2028x,b,9\r\n'
    tsv = 'label\ttext\ttext2\n10\ta cat\t"says ""hi"",\nthen leaves"\n9\té\u2028x\tb\n'
    for name, text in (("a.jsonl", lines), ("a.csv", "\ufeff" + csv), ("a.TSV", tsv)):
        read = read_classify(file(name, text))
        assert [(row.text, row.text2, row.label) for row in read] == rows, name
    assert read[1].where.endswith("a.TSV:4")


def test_missing_second_texts_and_nulls_are_none(file: Callable[[str, str], Path]) -> None:
    rows = read_classify(file("a.jsonl", '{"text":"x","text2":null,"score":1}\n{"text":"y","score":-2.5}'))
    assert [(row.text2, row.label, row.score) for row in rows] == [(None, None, 1.0), (None, None, -2.5)]
    assert read_classify(file("a.csv", "text,text2,score\nx,,1e-3\n"))[0].text2 is None


def test_unused_columns_are_told_not_silently_dropped(file: Callable[[str, str], Path]) -> None:
    notes: list[str] = []
    read_classify(file("a.jsonl", '{"text":"x","text_2":"y","label":"z"}'), notes.append)
    assert len(notes) == 1
    assert "text_2" in notes[0]
    assert "text2" in notes[0]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "x", "must end in .jsonl"),
        ("a.jsonl", "", "has no rows"),
        ("a.jsonl", '{"text":"x","label":1}\n{"text":', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", '[{"text":"x","label":1}]', r"a\.jsonl:1: each line must be one JSON object"),
        ("a.jsonl", '{"text":"x"}', r"a\.jsonl:1: a row has either a label or a score; this has text"),
        ("a.jsonl", '{"text":"x","label":1,"score":2}', "either a label or a score"),
        ("a.jsonl", '{"label":1}', r"a\.jsonl:1: text is missing; this row has label"),
        ("a.jsonl", '{"text":"","label":1}', r"a\.jsonl:1: text must be a string that is not empty"),
        ("a.jsonl", '{"text":"x","text2":"","label":1}', "text2 must be a string that is not empty"),
        ("a.jsonl", '{"text":["x"],"label":1}', "text must be a string"),
        ("a.jsonl", '{"text":"x","label":true}', "label must be an integer or a printable string, it is 'True'"),
        ("a.jsonl", '{"text":"x","label":1.5}', "label must be an integer"),
        ("a.jsonl", '{"text":"x","label":" "}', "label must be"),
        ("a.jsonl", '{"text":"x","score":NaN}', r"a\.jsonl:1: score must be a finite number"),
        ("a.jsonl", '{"text":"x","score":"high"}', "score must be a finite number"),
        (
            "a.jsonl",
            '{"text":"x","label":1}\n\n{"text":"x","score":2}',
            r"a\.jsonl:1 has a label, .*l:3 a score",
        ),
        ("a.jsonl", '{"text":"x","label":1,"text":"y"}', r"a\.jsonl:1: not JSON \(duplicate key 'text'\)"),
        ("a.jsonl", '{"text":"x","label":"\\ud800"}', r"a\.jsonl:1: half a surrogate pair"),
        (
            "a.jsonl",
            '{"text":"x","label":1}\n{"text":"x","label":2}\n{"text":"y","label":"1"}',
            r"a\.jsonl:1 has the label 1, .*a\.jsonl:3 '1': write it as a number or as a string",
        ),
        ("a.jsonl", json.dumps({"text": "x", "label": "7" * 5000}), r"a\.jsonl:1: the label '7{40}'.* 5000 characters"),
        ("a.csv", f"text,label\nx,{'7' * 5000}\n", r"a\.csv:2: the label '7{40}'.* 5000 characters, at most 200"),
        ("a.csv", "text,label\nx,1\ny\0,2\n", r"a\.csv:3: a NUL character"),
        ("a.tsv", "t\0e\0x\0t\0", r"a\.tsv:1: a NUL character"),
        ("a.csv", "text,label\nx,1\ny\n", r"a\.csv:3: 1 columns, the header has 2"),
        ("a.csv", 'text,label\nx,1\n"y"z,2\n', r"a\.csv:3: "),
        ("a.csv", 'text,label\n"two\nlines",1\ny,\n', r"a\.csv:4: a row has either a label or a score"),
        ("a.csv", "text,label\n", "has no rows"),
        (
            "a.csv",
            "sentence,label\nx,1\n",
            r"a\.csv:1: the header needs text, and label or score; it has sentence, label",
        ),
        ("a.tsv", "\ntext\tmood\nx\t1\n", r"a\.tsv:2: the header needs text, and label or score; it has text, mood"),
        ("a.csv", "text,label,text\nx,1,y\n", r"a\.csv:1: the header has text more than once"),
        ("a.csv", "text,label,mood\n,1,glad\n", r"a\.csv:2: text is missing; this row has label, mood"),
        ("a.jsonl", '{"sentence":"x","label":1}', r"a\.jsonl:1: text is missing; this row has sentence, label"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_line(
    file: Callable[[str, str], Path], name: str, text: str, message: str
) -> None:
    with pytest.raises(InvalidData, match=message):
        read_classify(file(name, text))


def test_a_file_that_cannot_be_read_or_is_not_utf8(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match="cannot be read: No such file"):
        read_classify(tmp_path / "none.jsonl")
    latin = tmp_path / "latin.csv"
    latin.write_bytes("text,label\nok,1\ncafé,2\n".encode("latin-1"))
    with pytest.raises(InvalidData, match=r"latin\.csv:3: not UTF-8"):
        read_classify(latin)


def test_lm_rows_of_all_three_forms(file: Callable[[str, str], Path]) -> None:
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    rows = [{"text": "once"}, {"prompt": "a", "completion": "b"}, {"messages": chat}]
    read = read_lm(file("a.jsonl", "\n".join(map(json.dumps, rows))))
    assert (read[0].text, read[1].prompt, read[1].completion, read[2].messages) == ("once", "a", "b", tuple(chat))
    quoted = json.dumps(chat).replace('"', '""')
    assert read_lm(file("a.csv", f'messages\n"{quoted}"\n'))[0].messages == tuple(chat)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, "text, or prompt and completion, or messages; this has prompt"),
        ({"completion": "a"}, "this has completion"),
        ({"text": "a", "completion": "b", "prompt": "c"}, "this has text, completion, prompt"),
        ({"prompt": "", "completion": "b"}, "prompt must be a string that is not empty"),
        ({"messages": []}, "no assistant message"),
        ({"messages": [{"role": "user", "content": "x"}]}, "no assistant message"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "starts with the assistant"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "must be a list of"),
        ({"messages": "hello"}, "messages: not JSON"),
        (
            {"messages": '[{"role":"user","content":"x","role":"assistant"}]'},
            "messages: not JSON .duplicate key 'role'",
        ),
        ({"text": "half \ud83d"}, "half a surrogate pair"),
        ({"messages": '[{"role":"user","content":"\\udc00"}]'}, "half a surrogate pair"),
    ],
)
def test_wrong_lm_rows(file: Callable[[str, str], Path], row: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidData, match=rf"a\.jsonl:1: .*{message}"):
        read_lm(file("a.jsonl", json.dumps(row)))


def test_numbers_and_other_names_may_be_labels_of_one_file(file: Callable[[str, str], Path]) -> None:
    rows = read_classify(file("a.jsonl", '{"text":"x","label":1}\n{"text":"y","label":"none"}\n{"text":"z","label":1}'))
    assert [row.label for row in rows] == ["1", "none", "1"]


def test_labels_are_sorted_integers_as_numbers() -> None:
    assert label_order(["10", "9", "-1", "9"]) == ("-1", "9", "10")
    assert label_order(["10", "9", "nine"]) == ("10", "9", "nine")
    assert label_order(["07", "7"]) == ("07", "7")


@given(st.lists(st.sampled_from("abcd"), min_size=2, max_size=200), st.integers(0, 5))
def test_a_tenth_is_held_out_of_every_label_by_its_share(labels: list[str], seed: int) -> None:
    rows = [ClassifyRow(str(k), "x", None, label, None) for k, label in enumerate(labels)]
    train, held = hold_out(rows, seed)
    assert sorted(row.where for row in train + held) == sorted(row.where for row in rows)
    assert len(held) == max(1, round(len(rows) * 0.1))
    assert (train, held) == hold_out(rows, seed)
    counts, kept = Counter(labels), Counter(row.label for row in held)
    for label, count in counts.items():
        assert abs(kept[label] - count * len(held) / len(rows)) < 2 + count * 0.05


def test_one_row_cannot_be_split() -> None:
    with pytest.raises(InvalidData, match="one row is not enough"):
        hold_out([ClassifyRow("f:1", "x", None, "a", None)], 0)

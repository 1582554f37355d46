"""The studies' pages: tables between marks, and the recorded lines that they are made from."""

import pytest

from tests.e2e.inputs import ROOT
from tests.study.methods import NAMES, paper
from tests.study.runner import BEGIN, END, records, with_tables

PAGE = ROOT / "docs" / "methods.md"


def test_tables_replace_what_was_between_the_marks() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = with_tables(page, "new")
    assert once == f"before\n{BEGIN}\nnew\n{END}\nafter\n" == with_tables(once, "new")


@pytest.mark.parametrize("page", ["none", BEGIN, f"{BEGIN}{BEGIN}{END}", f"{BEGIN}{END}{END}"])
def test_a_page_without_its_marks_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match="each once"):
        with_tables(page, "new")


def test_the_page_shows_the_papers_columns_as_the_formulas_give_them() -> None:
    assert paper() in PAGE.read_text()


def test_every_training_is_recorded_once() -> None:
    keys = [tuple(row["key"]) for row in records("evidence")]
    assert len(set(keys)) == len(keys)


def test_the_page_shows_each_methods_recorded_cost_of_serving() -> None:
    text = PAGE.read_text()
    recorded = {row["method"]: row["ratio"] for row in records("serving")}
    assert set(recorded) == set(NAMES.values())
    for name, method in NAMES.items():
        assert any(
            line.startswith(f"| {name} |") and line.endswith(f"| {recorded[method]:.3f} |")
            for line in text.splitlines()
        )

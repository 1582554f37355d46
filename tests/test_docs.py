"""Docs that fail the build: every setting, error code, command and metric has its place in docs/."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from cdvft.family import FAMILIES
from cdvft.kernels import Choice
from cdvft_server.config import ServeConfig
from cdvft_server.engine.capture import Recording
from cdvft_server.engine.engine import EngineConfig, EngineStats
from cdvft_server.engine.merged import MergedPool
from cdvft_server.engine.meters import Meters
from cdvft_server.engine.pool import AdapterPool
from cdvft_server.errors import CODES
from cdvft_server.metrics import Metrics
from cdvft_server.service.flights import Flights
from cdvft_server.service.gauges import read_gauges
from cdvft_server.service.ledger import Ledger
from cdvft_server.service.loads import LoadTimes
from cdvft_server.service.parts import Parts
from cdvft_server.service.workers import Workers
from cdvft_server.store import UsageStore

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def text(name: str) -> str:
    return (DOCS / name).read_text()


@pytest.mark.parametrize("code", CODES)
def test_every_error_code_is_explained_with_its_status(code: str) -> None:
    rows = [line for line in text("api.md").splitlines() if f"`{code}`" in line and line.startswith("|")]
    assert any(row.startswith(f"| {CODES[code]} |") for row in rows), rows


@pytest.mark.parametrize("field", ServeConfig.model_fields)
def test_every_setting_is_listed(field: str) -> None:
    option = "--" + field.replace("_", "-")
    rows = [line for line in text("configuration.md").splitlines() if line.startswith(f"| `{option}` |")]
    assert len(rows) == 1
    assert rows[0].startswith(f"| `{option}` | `CDVFT_{field.upper()}` |")
    assert rows[0].endswith(f"| {ServeConfig.model_fields[field].description} |")


def test_no_setting_is_listed_that_does_not_exist() -> None:
    listed = re.findall(r"^\| `--([a-z-]+)` \|", text("configuration.md"), re.M)
    assert sorted(listed) == sorted(field.replace("_", "-") for field in ServeConfig.model_fields)


def metrics() -> set[str]:
    """The names of all metrics, as a server without an engine would answer them."""
    meters, base = Meters(), SimpleNamespace(info=SimpleNamespace(name="base"))
    why = {"kernel": Choice("torch", ""), "attention": "views", "recording": Recording(False, "")}
    engine = SimpleNamespace(stats=EngineStats, meters=meters, backbone=base, config=EngineConfig(), **why)
    workers = cast(Workers, None)
    ledger = Ledger(cast(UsageStore, None), workers)
    pools = {"pool": AdapterPool("cpu", 1), "merged": MergedPool(1), "flights": Flights()}
    parts = cast(Parts, SimpleNamespace(engine=engine, ledger=ledger, **pools))
    text = Metrics(lambda: read_gauges(parts, LoadTimes())).render()[0].decode()
    return {name.removesuffix("_total") for name in re.findall(r"^# TYPE (\S+)", text, re.M)}


def test_every_metric_is_listed_and_no_other() -> None:
    rows = [line.split(" | ")[0] for line in text("api.md").splitlines() if line.startswith(("| `cdvft_", "| `vllm:"))]
    listed = re.findall(r"`((?:cdvft_|vllm:)[a-z_]+)`", "".join(rows))
    assert sorted(listed) == sorted(metrics())


def test_the_table_of_bases_is_the_families() -> None:
    assert re.findall(r"^\| `([a-z0-9-]+)` \|", text("models.md"), re.M) == [
        *(name for name, family in FAMILIES.items() if family.kind == "decoder"),
        *(name for name, family in FAMILIES.items() if family.kind == "encoder"),
    ]


def test_links_between_documents_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_test_that_the_threat_model_names_exists() -> None:
    rows = [line for line in text("security.md").splitlines() if line.startswith("| ") and "`tests/" in line]
    assert len(rows) > 20
    for row in rows:
        for name in re.findall(r"`(tests/[^`]+)`", row):
            path, _, function = name.partition("::")
            assert (ROOT / path).exists(), name
            assert not function or f"def {function}(" in (ROOT / path).read_text(), name


def test_no_threat_is_without_a_test() -> None:
    section = ""
    for line in text("security.md").splitlines():
        section = line if line.startswith("## ") else section
        if line.startswith("| ") and "against" in section and not line.startswith(("| threat", "| ---")):
            assert "`tests/" in line, line

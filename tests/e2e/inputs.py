"""Real data and models of `make trials`: the folder `shared` beside the project, or where CDVFT_TRIAL_INPUTS points."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
INPUTS = Path(os.environ.get("CDVFT_TRIAL_INPUTS") or ROOT.parent / "shared")
RUNS = ROOT / "runs" / "trials"  # trained adapters are kept here, so that a stopped trial goes on where it was


def model(name: str) -> Path:
    return _present(INPUTS / "models" / name)


def data(task: str, split: str) -> Path:
    return _present(INPUTS / "data" / task / f"{split}.jsonl")


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def write_rows(path: Path, items: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def _present(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"{path} is not there: trials need the real data and models (see CONTRIBUTING.md)")
    return path

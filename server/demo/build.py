"""Rebuild what the package embeds: the base (unless --adapters-only) and its demo adapters.

    python server/demo/build.py [--adapters-only]

Data goes to a temporary folder; the adapters are trained by `cdvft train`, as a user would, and land in
server/cdvft_server/demo/adapters. The last line of standard output is JSON: each adapter's evaluation.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from cdvft_server.demo import adapters_path, base_path
from cdvft_server.demo.language import WRITERS

HERE = Path(__file__).parent
CLASSIFIERS = ("mood", "topic")


def run(*command: str) -> str:
    """A Python command whose progress is shown; returns its standard output."""
    done = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def train(name: str, data: Path, out: Path) -> dict[str, Any]:
    kind = "lm" if name in WRITERS else "classify"
    files = ["--data", str(data / name / "train.jsonl"), "--eval", str(data / name / "valid.jsonl")]
    command = ["train", kind, "--base", str(base_path()), *files, "--out", str(out / name), "--epochs", "4"]
    report: dict[str, Any] = json.loads(run("-m", "cdvft_server.cli", *command).splitlines()[-1])
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters-only", action="store_true", help="keep the base that is there")
    if not parser.parse_args().adapters_only:
        run(str(HERE / "pretrain.py"))
    with tempfile.TemporaryDirectory() as folder:
        run(str(HERE / "make_data.py"), "--out", folder)
        reports = {name: train(name, Path(folder), adapters_path()) for name in (*WRITERS, *CLASSIFIERS)}
    print(json.dumps(reports))


if __name__ == "__main__":
    main()

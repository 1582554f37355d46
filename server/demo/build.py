"""Rebuild what the package embeds: the base (unless --adapters-only) and its demo adapters.

    python server/demo/build.py [--adapters-only | --record]

The base must come out within 2% of the held-out loss in recorded.json beside this file; `--record` writes it anew.
Data goes to a temporary folder; the adapters are trained by `cdvft train`, as a user would, and land in
server/cdvft_server/demo/adapters. The last line of standard output is JSON: the base's figures and each adapter's.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from cdvft_server.demo import BASE_NAME, adapters_path, base_path
from cdvft_server.demo.language import WRITERS

HERE = Path(__file__).parent
RECORDED = HERE / "recorded.json"
TOLERANCE = 0.02
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
    for about_the_run in ("training.json", "training.png"):
        (out / name / about_the_run).unlink()
    config = out / name / "adapter_config.json"
    told = json.loads(config.read_text()) | {"base_model_name_or_path": BASE_NAME}  # not where it lies here
    config.write_text(json.dumps(told, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    return report


def pretrain(record: bool) -> dict[str, Any]:
    """Pretrain the base; the figures are compared with the recorded ones, or take their place."""
    found: dict[str, Any] = json.loads(run(str(HERE / "pretrain.py")).splitlines()[-1])
    if record:
        RECORDED.write_text(json.dumps(found, indent=2) + "\n")
    recorded = json.loads(RECORDED.read_text())["loss"]
    if abs(found["loss"] - recorded) > TOLERANCE * recorded:
        sys.exit(f"the base's held-out loss is {found['loss']}, not within {TOLERANCE:.0%} of the recorded {recorded}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters-only", action="store_true", help="keep the base that is there")
    parser.add_argument("--record", action="store_true", help="make this base's figures the recorded ones")
    options = parser.parse_args()
    base = {} if options.adapters_only else {"cdvft-tiny": pretrain(options.record)}
    with tempfile.TemporaryDirectory() as folder:
        run(str(HERE / "make_data.py"), "--out", folder)
        reports = {name: train(name, Path(folder), adapters_path()) for name in (*WRITERS, *CLASSIFIERS)}
    print(json.dumps(base | reports))


if __name__ == "__main__":
    main()

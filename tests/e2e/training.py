"""Trains the trials' adapters by the command a user would call, once; what is there is used again."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.e2e.inputs import RUNS


def trained(kind: str, name: str, base: Path, data: Path, *options: str) -> tuple[Path, dict[str, Any]]:
    """The adapter's folder and the trainer's last line. Raises CalledProcessError with the trainer's output shown."""
    folder = RUNS / base.name / name
    result = folder / "result.json"
    command = ["train", kind, "--base", str(base), "--data", str(data), "--out", str(folder), *options]
    recorded = json.loads(result.read_text()) if result.is_file() else {}
    if recorded.get("command") != command:
        print(f"\ntraining {name}: cdvft {' '.join(command)}", flush=True)
        done = subprocess.run(
            [sys.executable, "-m", "cdvft_server.cli", *command], stdout=subprocess.PIPE, text=True, check=True
        )
        recorded = {"command": command, "result": json.loads(done.stdout.splitlines()[-1])}
        result.write_text(json.dumps(recorded))
    return folder, recorded["result"]

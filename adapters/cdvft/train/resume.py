"""The file an interrupted training goes on from."""

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from cdvft.errors import CdvftError

__all__ = ["Saved", "fingerprint"]

STATE_NAME = "training_state.pt"


def fingerprint(options: Mapping[str, Any], files: Mapping[str, Path | None], base_digest: str) -> dict[str, str]:
    """What must be equal for a training to go on: every option, the bytes of every file, and the base."""
    marks = {name: repr(value) for name, value in options.items()}
    for name, path in files.items():
        marks[name] = "none" if path is None else hashlib.sha256(path.read_bytes()).hexdigest()
    return marks | {"base": base_digest}


class Saved:
    """The state of the training with these marks, inside its `--out` folder."""

    def __init__(self, folder: Path, marks: Mapping[str, str]) -> None:
        self.path, self.marks = folder / STATE_NAME, dict(marks)

    def keep(self, state: Mapping[str, Any]) -> None:
        """Write the state in one step: a stop leaves the one before or this one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(f".{os.getpid()}")
        torch.save({"marks": self.marks, "state": dict(state)}, temporary)
        temporary.replace(self.path)

    def load(self) -> dict[str, Any] | None:
        """The state, or None where there is none. Raises CdvftError where it belongs to another training."""
        if not self.path.is_file():
            return None
        try:
            found = torch.load(self.path, weights_only=True)
            marks, state = found["marks"], found["state"]
        except Exception as error:  # torch.load raises many kinds for a damaged file
            raise CdvftError(f"--resume: {self.path} cannot be read ({error}); delete it to start again") from None
        if different := sorted(k for k in marks.keys() | self.marks.keys() if marks.get(k) != self.marks.get(k)):
            raise CdvftError(
                f"--resume: the training in {self.path.parent} was started with another {', '.join(different)}; "
                "use what it was started with, or leave --resume out to start again"
            )
        own: dict[str, Any] = state
        return own

    def remove(self) -> None:
        """Delete the state, and the folder if nothing else is in it."""
        self.path.unlink(missing_ok=True)
        with suppress(OSError):
            self.path.parent.rmdir()

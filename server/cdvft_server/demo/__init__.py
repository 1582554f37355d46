"""The embedded base `cdvft-tiny` and its demo adapters as package data. Never imports torch."""

from importlib.resources import files
from pathlib import Path

__all__ = ["BASE_NAME", "adapters_path", "base_path"]

BASE_NAME = "cdvft-tiny"


def base_path() -> Path:
    """The folder of the embedded base: config, weights and tokenizer in Hugging Face's layout."""
    return Path(str(files(__name__))) / BASE_NAME


def adapters_path() -> Path:
    """The folder of the demo adapters, one PEFT folder each. It may not exist."""
    return Path(str(files(__name__))) / "adapters"

"""An adapter's files as they are on disk, in PEFT's names."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cdvft.errors import InvalidAdapter

__all__ = [
    "CONFIG_NAME",
    "FIELDS",
    "FROZEN_NAME",
    "TEMPLATE_NAME",
    "WEIGHTS_NAME",
    "AdapterFiles",
    "read_folder",
    "write_folder",
]

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
TEMPLATE_NAME = "chat_template.jinja"
FROZEN_NAME = "frozen.safetensors"
FIELDS = {CONFIG_NAME: "config", WEIGHTS_NAME: "weights", TEMPLATE_NAME: "template", FROZEN_NAME: "frozen"}


@dataclass(frozen=True)
class AdapterFiles:
    """Exactly the bytes of the files. Optional: the chat template, and `frozen`: what a method draws by a seed rather
    than saving it (FourierFT's indices, VeRA's projections), kept so that nothing depends on a generator later.
    """

    config: bytes
    weights: bytes
    template: bytes | None = None
    frozen: bytes | None = None

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(map(len, self.named().values()))

    def named(self) -> dict[str, bytes]:
        """File name -> bytes, of those that there are."""
        files = {name: getattr(self, field) for name, field in FIELDS.items()}
        return {name: data for name, data in files.items() if data is not None}

    @classmethod
    def of(cls, named: Mapping[str, bytes]) -> Self:
        """The inverse of `named`."""
        return cls(**{FIELDS[name]: data for name, data in named.items()})


def read_folder(path: str | Path) -> AdapterFiles:
    """The adapter in a folder. Raises InvalidAdapter naming the file that is missing."""
    folder = Path(path)
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            pickled = name == WEIGHTS_NAME and (folder / "adapter_model.bin").is_file()
            hint = (
                "; adapter_model.bin is a pickle and is not read: save with safe_serialization=True" if pickled else ""
            )
            raise InvalidAdapter(f"{folder} has no {name}{hint}")
    found = {path.name: path.read_bytes() for path in (folder / name for name in FIELDS) if path.is_file()}
    return AdapterFiles.of(found)


def write_folder(path: str | Path, files: AdapterFiles) -> None:
    """Write the files into the folder, which is made if needed; optional ones left over from before are removed."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    named = files.named()
    for name in FIELDS.keys() - named.keys():
        (folder / name).unlink(missing_ok=True)
    for name, data in named.items():
        (folder / name).write_bytes(data)

"""An adapter's files as they are on disk, in PEFT's names."""

from dataclasses import dataclass
from pathlib import Path

from cdvft.errors import InvalidAdapter

__all__ = ["CONFIG_NAME", "TEMPLATE_NAME", "WEIGHTS_NAME", "AdapterFiles", "read_folder", "write_folder"]

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
TEMPLATE_NAME = "chat_template.jinja"


@dataclass(frozen=True)
class AdapterFiles:
    """Exactly the bytes of the files; `template` is the optional chat template."""

    config: bytes
    weights: bytes
    template: bytes | None = None

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return len(self.config) + len(self.weights) + len(self.template or b"")

    def named(self) -> dict[str, bytes]:
        """File name -> bytes, the template only where there is one."""
        files = {CONFIG_NAME: self.config, WEIGHTS_NAME: self.weights}
        return files if self.template is None else files | {TEMPLATE_NAME: self.template}


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
    template = folder / TEMPLATE_NAME
    return AdapterFiles(
        (folder / CONFIG_NAME).read_bytes(),
        (folder / WEIGHTS_NAME).read_bytes(),
        template.read_bytes() if template.is_file() else None,
    )


def write_folder(path: str | Path, files: AdapterFiles) -> None:
    """Write the files into the folder, which is made if needed; a template left over from before is removed."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    if files.template is None:
        (folder / TEMPLATE_NAME).unlink(missing_ok=True)
    for name, data in files.named().items():
        (folder / name).write_bytes(data)

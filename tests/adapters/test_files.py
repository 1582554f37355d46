"""Folders on disk."""

from pathlib import Path

import pytest
from cdvft.errors import InvalidAdapter
from cdvft.files import AdapterFiles, read_folder, write_folder


def test_a_folder_keeps_every_byte(tmp_path: Path) -> None:
    for template in (b"{{ x }}\r\n", None):  # the second write takes the template away again
        files = AdapterFiles(b'{"a": 1}\r\n', bytes(range(256)), template)
        write_folder(tmp_path / "new" / "adapter", files)
        assert read_folder(tmp_path / "new" / "adapter") == files
        assert files.size == 10 + 256 + len(template or b"")
        assert sorted(files.named()) == sorted(path.name for path in (tmp_path / "new" / "adapter").iterdir())


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidAdapter, match=r"has no adapter_config\.json$"):
        read_folder(tmp_path / "nowhere")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InvalidAdapter, match=r"has no adapter_model\.safetensors$"):
        read_folder(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(InvalidAdapter, match=r"adapter_model\.bin is a pickle and is not read"):
        read_folder(tmp_path)

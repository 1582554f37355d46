"""Uploads for store tests: real bytes, digests of their own, no tensors."""

import hashlib
import shutil
from pathlib import Path

import pytest
from cdvft.files import AdapterFiles
from cdvft_server.store import NewVersion, Store, VersionRow
from cdvft_server.store.schema import MIGRATIONS

ME = "default"
BASE = "sha256:" + "b" * 64
OTHER_BASE = "sha256:" + "c" * 64
CONFIG = b'{"peft_type": "CDVFT"}'  # shared by all, as configs of one training script are


def url_of(folder: Path) -> str:
    return f"sqlite:///{folder}/store.db"


def digest_of(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def weights_of(text: str, size: int = 100) -> bytes:
    return hashlib.shake_256(text.encode()).digest(size)


def new(text: str, base: str = BASE, *, size: int = 100, template: bytes | None = None) -> NewVersion:
    """The version whose content is given by `text`."""
    files = AdapterFiles(CONFIG, weights_of(text, size), template)
    return NewVersion(files, digest_of(text), base, None, {"method": "cdvft", "task": "lm", "text": text})


def put(store: Store, name: str, text: str, tenant: str = ME, base: str = BASE, **options: object) -> VersionRow:
    return store.put_version(tenant, name, new(text, base), **options)[0]


def older_migrations(folder: Path, version: str, patch: pytest.MonkeyPatch) -> None:
    """From here on, the migrations up to this one are all there are."""
    shutil.copytree(MIGRATIONS, folder)
    for path in (folder / "versions").glob("*.py"):
        if path.name[:4] > version:
            path.unlink()
    patch.setattr("cdvft_server.store.schema.MIGRATIONS", folder)

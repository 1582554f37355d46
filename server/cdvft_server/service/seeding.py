"""Adapters that a server uploads to itself when it starts: the demo's once per store, and those of `--adapters`."""

import logging
from collections.abc import Iterable
from pathlib import Path

from cdvft.backbone import BaseInfo
from cdvft.errors import InvalidAdapter
from cdvft.files import CONFIG_NAME, read_folder

from cdvft_server.errors import ApiError, StartRefused
from cdvft_server.exceptions import InvalidName, NotFound
from cdvft_server.seeds import adapter_folders
from cdvft_server.service.uploads import UploadForm, Uploads
from cdvft_server.store import Store, Upload

__all__ = ["seed_demo", "seed_folders"]

log = logging.getLogger(__name__)


def seed_demo(uploads: Uploads, store: Store, base: BaseInfo, tenant: str, folder: Path) -> None:
    """Upload the demo adapters and record that, at once: what is deleted later does not come back."""
    step = f"demo adapters of {base.digest}"
    if store.step_done(step) or not folder.is_dir():
        return
    names = sorted(path.parent for path in folder.glob(f"*/{CONFIG_NAME}"))
    forms = [UploadForm(own.name, files=read_folder(own), description="Demo") for own in names]
    store.put_step(tenant, step, [Upload(f.name, uploads.prove(f), description=f.description) for f in forms])


def seed_folders(
    uploads: Uploads, store: Store, base: BaseInfo, tenant: str, folders: Iterable[Path], *, update: bool
) -> None:
    """Upload each folder where its name is new, or `update` is set. Raises StartRefused naming the folder."""
    for folder in adapter_folders(folders):
        try:
            files = read_folder(folder)
            digest = uploads.read(files).digest
            known = _known(store, tenant, folder.name, base.digest)
            if digest in known:
                continue
            if known and not update:
                raise StartRefused(
                    f"--adapters {folder}: the store has other content under the name {folder.name!r}; "
                    "add --adapters-update to make this a new version"
                )
            uploads.put_now(tenant, UploadForm(folder.name, files=files))
        except (InvalidAdapter, InvalidName, ApiError) as error:
            raise StartRefused(f"--adapters {folder}: {error}") from None


def _known(store: Store, tenant: str, name: str, base_digest: str) -> set[str]:
    """The digests of all versions."""
    try:
        return {row.digest for row in store.list_versions(tenant, name, base_digest)}
    except NotFound:
        return set()

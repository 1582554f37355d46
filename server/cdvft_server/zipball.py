"""Reads zip members one chunk at a time: bounded memory, and only what an adapter's archive needs."""

import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from cdvft_server.exceptions import BadArchive, TooLarge

__all__ = ["ZipMember", "zip_members"]

CHUNK = 1 << 16
MAX_DIRECTORY_BYTES = 1 << 20
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
)
METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}


@dataclass
class ZipMember:
    """`chunks()` reads and verifies the content."""

    path: str
    size: int  # bytes, as the header says; chunks() gives exactly as many
    folder: bool
    _archive: zipfile.ZipFile
    _info: zipfile.ZipInfo

    def chunks(self) -> Iterator[bytes]:
        if self._info.compress_type not in METHODS:
            raise BadArchive(f"member {self.path[:200]!r} of the zip is compressed by another method than deflate")
        left = self.size
        with _damage(), self._archive.open(self._info) as content:
            while chunk := content.read(CHUNK):
                left -= len(chunk)
                yield chunk
        if left:
            raise BadArchive(f"member {self.path[:200]!r} of the zip is {left} bytes shorter than its header says")


def zip_members(data: BinaryIO, max_bytes: int) -> Iterator[ZipMember]:
    """Every member, in the directory's order. Raises BadArchive, or TooLarge where the members are said to expand past
    `max_bytes` together or the directory is longer than any adapter's.
    """
    with _damage():
        archive = zipfile.ZipFile(_Bounded(data))
    expanded = 0
    for info in archive.infolist():
        expanded += info.file_size
        if expanded > max_bytes:
            raise TooLarge(f"the archive expands to more than {max_bytes} bytes")
        _check(info)
        yield ZipMember(info.orig_filename, info.file_size, _is_folder(info), archive, info)


class _Bounded:
    """A file whose single reads are limited: zipfile takes the whole directory, of any stated length, at once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, count: int = -1) -> bytes:
        if 0 <= count <= MAX_DIRECTORY_BYTES:
            return self._file.read(count)
        data = self._file.read(MAX_DIRECTORY_BYTES + 1)
        if len(data) > MAX_DIRECTORY_BYTES:
            raise TooLarge(f"the zip's directory is longer than {MAX_DIRECTORY_BYTES} bytes")
        return data


@contextmanager
def _damage() -> Iterator[None]:
    try:
        yield
    except (BadArchive, TooLarge):
        raise
    except DAMAGED as error:
        raise BadArchive(f"the zip is damaged or truncated: {error}") from None


def _is_folder(info: zipfile.ZipInfo) -> bool:
    return info.orig_filename.endswith("/") or stat.S_ISDIR(info.external_attr >> 16)


def _check(info: zipfile.ZipInfo) -> None:
    path = info.orig_filename
    if not path or re.search(r"[\0\ud800-\udfff]", path):
        raise BadArchive(f"a member of the zip has an empty or broken name: {path[:200]!r}")
    if info.flag_bits & 0x2041:  # encrypted, strongly encrypted, masked directory
        raise BadArchive(f"member {path[:200]!r} of the zip is encrypted; upload it without a password")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        what = "a symbolic link" if kind == stat.S_IFLNK else "a device, pipe or socket"
        raise BadArchive(f"member {path[:200]!r} of the zip is {what}; only plain files and folders are allowed")

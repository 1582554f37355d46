"""Archives of every kind, right and wrong, for the tests."""

import gzip
import io
import tarfile
import zipfile
from collections.abc import Iterable

CONFIG = b'{"peft_type": "CDVFT"}'
WEIGHTS = bytes(range(256)) * 300  # more than one chunk
TEMPLATE = b"{{ messages }}"
GOOD = {"adapter_config.json": CONFIG, "adapter_model.safetensors": WEIGHTS}
Entries = Iterable[tuple[str | zipfile.ZipInfo | tarfile.TarInfo, bytes]]


def make_zip(entries: Entries, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", compression) as archive:
        for entry, content in entries:
            archive.writestr(entry, content, compress_type=compression)
    return data.getvalue()


def make_tar(entries: Entries, form: int = tarfile.PAX_FORMAT) -> bytes:
    return gzip.compress(plain_tar(entries, form), 1)


def plain_tar(entries: Entries, form: int = tarfile.PAX_FORMAT) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=form) as archive:
        for entry, content in entries:
            info = entry if isinstance(entry, tarfile.TarInfo) else tarfile.TarInfo(entry)
            if info.isreg():
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return data.getvalue()


def tar_header(name: str, kind: bytes, size: int, prefix: bytes = b"") -> bytes:
    """One raw 512-byte header with a right checksum, for what tarfile would not write."""
    field = f"{size:011o}\0".encode() if size < 8**11 else b"\x80" + size.to_bytes(11, "big")
    header = bytearray(512)
    header[:100] = name.encode().ljust(100, b"\0")
    header[100:108] = b"0000644\0"
    header[124:136] = field
    header[156:157] = kind
    header[257:265] = b"ustar\0" + b"00"
    header[345:500] = prefix.ljust(155, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header)


def blocks(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def pax(*records: tuple[str, str]) -> bytes:
    """A pax header block for the next member."""
    lines = b""
    for key, value in records:
        body = f" {key}={value}\n".encode()
        length = len(body)
        while len(str(length)) + len(body) != length:
            length = len(str(length)) + len(body)
        lines += str(length).encode() + body
    return tar_header("pax", b"x", len(lines)) + blocks(lines)

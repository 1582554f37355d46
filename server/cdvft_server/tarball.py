"""Reads tar.gz as a stream of members: bounded memory, linear time, nothing a header says is believed unchecked.

The standard library's tarfile reads a member's extended headers whole and accepts links, devices and sparse files;
here whatever no adapter needs is refused.
"""

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import BinaryIO, NoReturn

from cdvft_server.exceptions import BadArchive, TooLarge

__all__ = ["CHUNK", "TarMember", "tar_members"]

CHUNK = 1 << 16
BLOCK = 512
MAX_NAME_BYTES = 4096
MAX_EXTENDED_BYTES = 1 << 16
MAX_EXTENDED_HEADERS = 4  # in front of one member
MAX_PAX_RECORDS = 200
REFUSED = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a named pipe",
    b"K": "a link",
    b"S": "a sparse file",
    b"M": "a part of another volume",
}
PAX_RECORD = re.compile(rb"([1-9][0-9]{0,6}) ([^=\n]+)=")


@dataclass
class TarMember:
    """`chunks()` reads the content, once, before the next member is asked for; what is left unread is skipped."""

    path: str
    size: int  # bytes, as the header says; chunks() gives exactly as many
    folder: bool
    _stream: "_Stream"

    def chunks(self) -> Iterator[bytes]:
        for start in range(0, self.size, CHUNK):
            yield self._stream.read(min(self.size - start, CHUNK))


def tar_members(data: BinaryIO, max_bytes: int) -> Iterator[TarMember]:
    """Every member in turn. Reads to the end of the file, so that the checksum is verified.

    Raises BadArchive, or TooLarge past `max_bytes` of expanded data.
    """
    stream = _Stream(data, max_bytes)
    extended: dict[str, bytes] = {}
    headers = 0
    while (header := stream.read(BLOCK)) != bytes(BLOCK):
        _check_sum(header)
        kind = header[156:157]
        is_extended = kind in (b"x", b"g", b"L")
        size = int(extended["size"]) if "size" in extended and not is_extended else _number(header[124:136])
        end = stream.position + -(-size // BLOCK) * BLOCK
        if end > max_bytes:
            raise TooLarge(f"the archive expands to more than {max_bytes} bytes")
        if is_extended:
            headers += 1
            if headers > MAX_EXTENDED_HEADERS:
                raise BadArchive(f"a member of the archive has more than {MAX_EXTENDED_HEADERS} extended headers")
            extended |= _extended(kind, stream.read_at_most(size, MAX_EXTENDED_BYTES))
        else:
            path = _path(extended.get("path") or _header_path(header))
            _check_kind(kind, path)
            folder = kind == b"5" or path.endswith("/")
            yield TarMember(path, 0 if folder else size, folder, stream)
            extended, headers = {}, 0
        stream.skip_to(end)
    stream.drain()


class _Stream:
    """The decompressed bytes, counted."""

    def __init__(self, data: BinaryIO, max_bytes: int) -> None:
        self._chunks = _decompressed(data)
        self._max_bytes = max_bytes
        self._buffer = b""
        self.position = 0

    def read(self, count: int) -> bytes:
        """Exactly `count` bytes, at most CHUNK."""
        while len(self._buffer) < count:
            self._buffer += next(self._chunks, b"") or _truncated()
        data, self._buffer = self._buffer[:count], self._buffer[count:]
        self._advance(count)
        return data

    def read_at_most(self, size: int, limit: int) -> bytes:
        if size > limit:
            raise BadArchive(f"an extended header in the archive has {size} bytes; at most {limit} are allowed")
        return self.read(size)

    def skip_to(self, position: int) -> None:
        while self.position < position:
            self.read(min(position - self.position, CHUNK))

    def drain(self) -> None:
        """Read what follows the end of the archive: zeros, and gzip's checksum."""
        for data in chain([self._buffer], self._chunks):
            if data.count(0) != len(data):
                raise BadArchive("the archive has data after its end")
            self._advance(len(data))

    def _advance(self, count: int) -> None:
        self.position += count
        if self.position > self._max_bytes:
            raise TooLarge(f"the archive expands to more than {self._max_bytes} bytes")


def _decompressed(data: BinaryIO) -> Iterator[bytes]:
    """The content of one gzip member, in pieces of 1 to CHUNK bytes; its checksum is verified at the end."""
    inflate = zlib.decompressobj(wbits=31)
    pending = b""
    while not inflate.eof:
        pending = pending or data.read(CHUNK) or _truncated()
        try:
            piece = inflate.decompress(pending, CHUNK)
        except zlib.error as error:
            raise BadArchive(f"the archive cannot be decompressed: {error}") from None
        pending = inflate.unconsumed_tail
        if piece:
            yield piece
    rest = inflate.unused_data
    while rest:
        if rest.count(0) != len(rest):
            raise BadArchive("the archive has data after its end; it must be one gzip member")
        rest = data.read(CHUNK)


def _truncated() -> NoReturn:
    raise BadArchive("the archive is truncated: its data ends before its last member does")


def _check_sum(header: bytes) -> None:
    expected = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    if _number(header[148:156]) != expected:
        raise BadArchive("the archive is damaged, or not a tar file: a member's header has a wrong checksum")


def _number(field: bytes) -> int:
    """An octal header field. GNU's binary form is for files beyond 8 GiB, which are too large in any case."""
    if field[0] & 0x80:
        raise TooLarge("a member of the archive is said to be larger than 8 GiB")
    text = field.strip(b" \0")
    if not re.fullmatch(rb"[0-7]*", text):
        raise BadArchive(f"the archive is damaged: a header holds {text[:12]!r} where an octal number belongs")
    return int(text or b"0", 8)


def _extended(kind: bytes, data: bytes) -> dict[str, bytes]:
    """From a pax header or GNU's long name: what changes the next member's path or size."""
    if kind == b"L":
        return {"path": data.rstrip(b"\0")}
    records: dict[str, bytes] = {}
    position = 0
    for _ in range(MAX_PAX_RECORDS):
        if position == len(data):
            return records
        match = PAX_RECORD.match(data, position)
        end = position + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            raise BadArchive("the archive is damaged: a pax header is not a list of 'LENGTH KEY=VALUE' lines")
        key, value = match[2], data[match.end() : end - 1]
        if key.startswith(b"GNU.sparse"):
            raise BadArchive("the archive holds a sparse file; write it without --sparse")
        if key in (b"path", b"size"):
            if kind == b"g" or (key == b"size" and not re.fullmatch(rb"[0-9]{1,15}", value)):
                raise BadArchive(f"the archive's pax header sets {key.decode()} in a way that no adapter needs")
            records[key.decode()] = value
        position = end
    raise BadArchive(f"a pax header in the archive has {MAX_PAX_RECORDS} records or more")


def _header_path(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _path(raw: bytes) -> str:
    try:
        path = raw.decode()
    except UnicodeDecodeError:
        raise BadArchive(f"a member of the archive has a name that is not UTF-8: {raw[:200]!r}") from None
    if not path or len(raw) > MAX_NAME_BYTES or "\0" in path:
        raise BadArchive(f"a member of the archive has an empty, too long or broken name: {path[:200]!r}")
    return path


def _check_kind(kind: bytes, path: str) -> None:
    if kind in (b"0", b"\0", b"7", b"5"):
        return
    what = REFUSED.get(kind, f"of an unknown type {kind!r}")
    raise BadArchive(f"member {path[:200]!r} of the archive is {what}; only plain files and folders are allowed")

import gzip
import os
import shutil
import stat
import struct
import subprocess
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from cdvft.errors import InvalidAdapter
from cdvft.files import AdapterFiles
from cdvft_server.archive import ArchiveLimits, read_archive
from cdvft_server.exceptions import BadArchive, TooLarge

from tests.server.archive_maker import (
    CONFIG,
    GOOD,
    TEMPLATE,
    WEIGHTS,
    blocks,
    make_tar,
    make_zip,
    pax,
    plain_tar,
    tar_header,
)

FILES = AdapterFiles(CONFIG, WEIGHTS)
BOTH = pytest.mark.parametrize("make", [make_zip, make_tar])
Make = Callable[..., bytes]
END = bytes(1024)


def under(folder: str, entries: dict[str, bytes] = GOOD) -> list[tuple[str, bytes]]:
    return [(folder + name, content) for name, content in entries.items()]


@BOTH
@pytest.mark.parametrize("folder", ["", "./", "poet/", "./poet/", "poet//", "ä 1/"])
def test_top_or_one_folder(make: Make, folder: str) -> None:
    assert read_archive(make(under(folder))) == (FILES, [])


@BOTH
def test_template_and_ignored_files(make: Make) -> None:
    entries = under("poet/", GOOD | {"chat_template.jinja": TEMPLATE, "README.md": b"", "runs/log": b"x"})
    files, ignored = read_archive(make([("top.txt", b"x"), *entries]))
    assert files == AdapterFiles(CONFIG, WEIGHTS, TEMPLATE)
    assert ignored == ["top.txt", "poet/README.md", "poet/runs/log"]


@BOTH
def test_the_top_comes_before_folders(make: Make) -> None:
    checkpoint = under("checkpoint-10/", dict.fromkeys(GOOD, b"other"))
    files, ignored = read_archive(make([*checkpoint, *under("")]))
    assert files == FILES
    assert ignored == [path for path, _ in checkpoint]


def test_any_binary_file() -> None:
    data = make_zip(under(""))
    for size in (1, len(data) + 1):  # rolled over to disk, and in memory
        with tempfile.SpooledTemporaryFile(max_size=size) as file:
            file.write(data)
            assert read_archive(file) == (FILES, [])


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("length", [90, 101, 140])
def test_long_names_in_every_tar_format(form: int, length: int) -> None:
    name = "d" * 60 + "/" + "f" * (length - 61)
    files, ignored = read_archive(make_tar([(name, b"x"), *under("")], form))
    assert files == FILES
    assert ignored == [name]


def test_stored_zip_and_folders() -> None:
    entries = [("poet/", b""), *under("poet/")]
    assert read_archive(make_zip(entries, zipfile.ZIP_STORED)) == (FILES, [])
    folder = tarfile.TarInfo("poet")
    folder.type = tarfile.DIRTYPE
    assert read_archive(make_tar([(folder, b""), *under("poet/")])) == (FILES, [])
    old_folder = blocks(b"") + tar_header("poet/", b"\0", 0)
    assert read_archive(gzip.compress(old_folder + plain_tar(under("poet/")))) == (FILES, [])


@pytest.mark.skipif(not shutil.which("tar"), reason="needs the tar command")
def test_the_tar_command(tmp_path: Path) -> None:
    folder = tmp_path / "poet"
    folder.mkdir()
    for name, content in GOOD.items():
        (folder / name).write_bytes(content)
    for arguments in (["-C", str(folder), "."], ["-C", str(tmp_path), "poet"], ["-C", str(folder), *GOOD]):
        subprocess.run(["tar", "-czf", str(tmp_path / "x.tar.gz"), *arguments], check=True)
        assert read_archive((tmp_path / "x.tar.gz").read_bytes()) == (FILES, [])


def special_zip(mode: int, name: str = "extra") -> bytes:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (mode | 0o644) << 16
    return make_zip([*under(""), (info, b"/etc/passwd")])


def special_tar(kind: bytes, name: str = "extra") -> bytes:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = "/etc/passwd"
    return make_tar([*under(""), (info, b"")])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (special_zip(stat.S_IFLNK), "'extra' of the zip is a symbolic link"),
        (special_zip(stat.S_IFCHR), "device"),
        (special_zip(stat.S_IFIFO), "pipe"),
        (special_zip(stat.S_IFSOCK), "socket"),
        (special_zip(stat.S_IFLNK, "adapter_model.bin"), "symbolic link"),
        (special_tar(tarfile.LNKTYPE), "'extra' of the archive is a hard link"),
        (special_tar(tarfile.SYMTYPE), "a symbolic link"),
        (special_tar(tarfile.CHRTYPE), "a character device"),
        (special_tar(tarfile.BLKTYPE), "a block device"),
        (special_tar(tarfile.FIFOTYPE), "a named pipe"),
        (gzip.compress(tar_header("extra", b"S", 0) + END), "a sparse file"),
        (gzip.compress(tar_header("extra", b"M", 0) + END), "another volume"),
        (gzip.compress(tar_header("extra", b"Z", 0) + END), "an unknown type b'Z'"),
        (gzip.compress(pax(("GNU.sparse.major", "1")) + plain_tar(under(""))), "a sparse file"),
    ],
)
def test_only_plain_files(data: bytes, message: str) -> None:
    with pytest.raises(BadArchive, match=message):
        read_archive(data)


@BOTH
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/etc/passwd", "absolute"),
        ("/adapter_config.json", "absolute"),
        ("\\x", "absolute"),
        ("C:\\x", "absolute"),
        ("c:x", "absolute"),
        ("../x", r"'\.\.'"),
        ("a/../x", r"'\.\.'"),
        ("a\\..\\x", r"'\.\.'"),
        ("..", r"'\.\.'"),
        ("a/..", r"'\.\.'"),
        (".", "no name"),
    ],
)
def test_paths(make: Make, name: str, message: str) -> None:
    with pytest.raises(BadArchive, match=message):
        read_archive(make([*under(""), (name, b"x")]))


def test_paths_in_long_name_headers() -> None:
    name = "a/" * 60 + "../x"
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with pytest.raises(BadArchive, match=r"'\.\.'"):
            read_archive(make_tar([(name, b"x"), *under("")], form))
    with pytest.raises(BadArchive, match="absolute"):
        read_archive(gzip.compress(pax(("path", "/x")) + plain_tar(under(""))))
    with pytest.raises(BadArchive, match="absolute"):
        read_archive(gzip.compress(tar_header("x", b"0", 0, prefix=b"/etc") + END))


@pytest.mark.parametrize("second", ["adapter_config.json", "./adapter_config.json", "README"])
def test_duplicates(second: str) -> None:
    entries = [*under(""), ("README", b"1"), (second, b"{}")]
    with pytest.raises(BadArchive, match="two members"):
        read_archive(make_tar(entries))
    renamed = "*" * len(second)  # zipfile warns of a second member with the same name
    data = make_zip([*entries[:-1], (renamed, b"{}")])
    with pytest.raises(BadArchive, match="two members"):
        read_archive(data.replace(renamed.encode(), second.encode()))


def test_name_with_a_nul() -> None:
    data = make_zip([*under(""), ("ab*cd", b"")]).replace(b"ab*cd", b"ab\0cd")
    with pytest.raises(BadArchive, match="broken name"):
        read_archive(data)


@BOTH
@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "no adapter_config.json at its top or in one folder"),
        ([("README", b"")], "no adapter_config.json"),
        ([("adapter_config.json", CONFIG)], "no adapter_model.safetensors$"),
        ([("x/adapter_config.json", CONFIG)], "no x/adapter_model.safetensors$"),
        ([("adapter_model.safetensors", WEIGHTS)], "no adapter_config.json"),
        ([("adapter_config.json", b""), ("x/adapter_model.safetensors", b"")], "no adapter_model.safetensors"),
        (under("a/b/"), "in one folder, not in a/b/"),
        ([*under("a/"), *under("b/")], r"several adapters \(a/, b/\)"),
        ([("adapter_config.json", CONFIG), ("adapter_model.bin", b"")], "'adapter_model.bin' is a pickle"),
        ([("a/adapter_config.json", CONFIG), ("a/adapter.pt", b"")], "'a/adapter.pt' is a pickle"),
        ([("archive/data.pkl", b""), ("archive/version", b"3")], "no adapter_config.json"),
        (under("", {name.upper(): data for name, data in GOOD.items()}), "no adapter_config.json"),
    ],
)
def test_readable_but_no_adapter(make: Make, entries: list[tuple[str, bytes]], message: str) -> None:
    with pytest.raises(InvalidAdapter, match=message):
        read_archive(make(entries))


def test_a_folder_with_a_files_name_is_no_file() -> None:
    with pytest.raises(InvalidAdapter, match=r"no adapter_config.json"):
        read_archive(make_zip([("adapter_config.json/", b""), ("adapter_model.safetensors", b"")]))


@BOTH
def test_pickle_beside_safetensors_is_ignored(make: Make) -> None:
    assert read_archive(make([*under(""), ("adapter_model.bin", b"x")])) == (FILES, ["adapter_model.bin"])


@BOTH
@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (ArchiveLimits(members=2), "more than 2 members"),
        (ArchiveLimits(weights=len(WEIGHTS) - 1), "adapter_model.safetensors has 76800 bytes; at most 76799"),
        (ArchiveLimits(config=len(CONFIG) - 1), "adapter_config.json has 22 bytes; at most 21"),
        (ArchiveLimits(template=len(TEMPLATE) - 1), "chat_template.jinja has 14 bytes; at most 13"),
        (ArchiveLimits(expansion=len(WEIGHTS)), "expands to more than 76800 bytes"),
    ],
)
def test_limits(make: Make, limits: ArchiveLimits, message: str) -> None:
    entries = under("", GOOD | {"chat_template.jinja": TEMPLATE})
    with pytest.raises(TooLarge, match=message):
        read_archive(make(entries), limits)
    exact = ArchiveLimits(len(WEIGHTS), 1 << 20, 3, len(CONFIG), len(TEMPLATE))
    assert read_archive(make(entries), exact)[0].template == TEMPLATE


@BOTH
def test_ignored_files_count_as_members_and_as_expansion(make: Make) -> None:
    many = [(f"{number}", b"") for number in range(63)]
    with pytest.raises(TooLarge, match="more than 64 members"):
        read_archive(make([*many, *under("")]))
    with pytest.raises(TooLarge, match="expands to more than"):
        read_archive(make([("zeros", bytes(1 << 20)), *under("")]), ArchiveLimits(expansion=1 << 19))


def with_size(data: bytes, size: int) -> bytes:
    """The zip with another uncompressed size in both headers of its first member."""
    changed = bytearray(data)
    struct.pack_into("<I", changed, 22, size)
    struct.pack_into("<I", changed, changed.index(b"PK\1\2") + 24, size)
    return bytes(changed)


def test_a_size_that_lies() -> None:
    bomb = make_zip([("adapter_model.safetensors", bytes(1 << 22)), ("adapter_config.json", CONFIG)])
    for size in (10, 1000):
        with pytest.raises(BadArchive, match="damaged"):
            read_archive(with_size(bomb, size), ArchiveLimits(weights=1000))
    with pytest.raises(BadArchive, match="shorter than its header says"):
        read_archive(with_size(bomb, (1 << 22) + 1))
    with pytest.raises(TooLarge, match="expands to more"):
        read_archive(with_size(bomb, 0xFFFFFFF0))
    with pytest.raises(TooLarge, match="expands to more"):
        read_archive(gzip.compress(tar_header("x", b"0", 1 << 30) + END))
    with pytest.raises(TooLarge, match="larger than 8 GiB"):
        read_archive(gzip.compress(tar_header("x", b"0", 1 << 40) + END))
    with pytest.raises(TooLarge, match="expands to more"):
        read_archive(gzip.compress(pax(("size", "9" * 15)) + plain_tar(under(""))))


def test_a_pax_size_is_the_size() -> None:
    weights = tar_header("adapter_model.safetensors", b"0", 1) + blocks(WEIGHTS)
    data = pax(("size", str(len(WEIGHTS))), ("mtime", "1.5")) + weights + plain_tar([("adapter_config.json", CONFIG)])
    assert read_archive(gzip.compress(data)) == (FILES, [])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pax(("size", "1e3")), "pax header sets size"),
        (pax(("size", "-1")), "pax header sets size"),
        (pax(*[("comment", "x")] * 200), "200 records"),
        (pax(("comment", "x" * (1 << 16))), "at most 65536"),
        (pax(("comment", "x")) * 5, "more than 4 extended headers"),
        (tar_header("g", b"g", 10) + blocks(b"10 path=x\n"), "pax header sets path"),
        (tar_header("x", b"x", 4) + blocks(b"4 x\n"), "pax header is not a list"),
        (tar_header("x", b"x", 8) + blocks(b"9 aa=bb\n"), "pax header is not a list"),
        (tar_header("x", b"x", 8) + blocks(b"2 aa=bb\n"), "pax header is not a list"),
        (tar_header("x", b"x", 8) + blocks(b"-8 a=bb\n"), "pax header is not a list"),
        (tar_header("x", b"L", 3) + blocks(b"\xff\xfe\0"), "not UTF-8"),
        (tar_header("x", b"L", 5000) + blocks(b"n" * 5000), "too long"),
        (tar_header("x", b"L", 3) + blocks(b"a\0b"), "broken name"),
        (tar_header("x", b"0", 512) + blocks(b"x"), "data after its end"),
        (b"not a tar file" + bytes(600), "checksum"),
    ],
)
def test_tar_tricks(data: bytes, message: str) -> None:
    tail = bytes(1024) + b"hidden" if "after its end" in message else plain_tar(under(""))
    with pytest.raises(BadArchive, match=message):
        read_archive(gzip.compress(data + tail))


def test_header_with_letters_where_numbers_belong() -> None:
    header = bytearray(tar_header("x", b"0", 0))
    header[124:136] = b"12345678xyz\0"
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    with pytest.raises(BadArchive, match="an octal number"):
        read_archive(gzip.compress(bytes(header) + END))


def test_data_after_the_end() -> None:
    data = make_tar(under(""))
    assert read_archive(data + bytes(1000)) == (FILES, [])
    for tail in (b"x", bytes(10) + b"x", data):
        with pytest.raises(BadArchive, match="after its end"):
            read_archive(data + tail)


@BOTH
def test_truncated(make: Make) -> None:
    data = make([*under(""), ("noise", os.urandom(5000))])
    for length in [*range(0, len(data) - 1, 97), len(data) - 1]:
        with pytest.raises(BadArchive):
            read_archive(data[:length])
    with pytest.raises(BadArchive, match="truncated"):
        read_archive(gzip.compress(plain_tar(under("")).rstrip(b"\0")))


@BOTH
def test_a_changed_byte_in_the_weights_is_noticed(make: Make) -> None:
    data = bytearray(make([("adapter_model.safetensors", os.urandom(5000)), ("adapter_config.json", CONFIG)]))
    data[2500] ^= 1
    with pytest.raises(BadArchive, match=r"damaged|decompressed"):
        read_archive(bytes(data))


@pytest.mark.parametrize("flag", [0x1, 0x40])
def test_encrypted_zip(flag: int) -> None:
    data = bytearray(make_zip(under("")))
    directory = data.index(b"PK\1\2")
    data[directory + 8] |= flag
    data[6] |= flag
    with pytest.raises(BadArchive, match="encrypted"):
        read_archive(bytes(data))


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_other_compression(method: int) -> None:
    with pytest.raises(BadArchive, match="another method than deflate"):
        read_archive(make_zip(under(""), method))


@pytest.mark.parametrize(
    "data",
    [b"", b"PK", b"hello", bytes(1000), plain_tar(under("")), b"\x80\x04\x95", b"BZh91AY", b"7z\xbc\xaf\x27\x1c"],
)
def test_not_an_archive(data: bytes) -> None:
    with pytest.raises(BadArchive, match=r"neither a zip nor a tar.gz"):
        read_archive(data)


def test_a_directory_of_millions_is_not_read() -> None:
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    directory = entry * 200_000
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(directory), 4, 0)
    with pytest.raises(TooLarge, match="directory is longer"):
        read_archive(b"PK\3\4" + directory + end)


def bomb_of_empty_gzip_members() -> bytes:
    return gzip.compress(b"") * 100_000


def bomb_of_pax_headers() -> bytes:
    return gzip.compress(pax(("comment", "x")) * 100_000 + plain_tar(under("")))


def bomb_of_a_long_gzip_name() -> bytes:
    return b"\x1f\x8b\x08\x08\0\0\0\0\0\3" + b"n" * (32 << 20)


@pytest.mark.parametrize("bomb", [bomb_of_empty_gzip_members, bomb_of_pax_headers, bomb_of_a_long_gzip_name])
def test_no_bomb_takes_long(bomb: Callable[[], bytes]) -> None:
    data = bomb()
    started = time.process_time()
    with pytest.raises(BadArchive):
        read_archive(data)
    assert time.process_time() - started < 1


def test_zeros_beyond_the_limit_are_not_expanded() -> None:
    stream = gzip.compress(bytes(64 << 20), 9)
    data = gzip.compress(tar_header("x", b"0", 60 << 20) + bytes(64 << 20))
    assert len(stream) < 1 << 17
    started = time.process_time()
    with pytest.raises(TooLarge, match="expands to more"):
        read_archive(data, ArchiveLimits(expansion=1 << 20))
    assert time.process_time() - started < 0.5

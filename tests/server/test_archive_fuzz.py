"""Whatever is uploaded as an archive, only the three documented errors come out, and nothing beyond the limits."""

import gzip
import io
import tarfile
import zipfile

from cdvft.errors import InvalidAdapter
from cdvft.files import AdapterFiles
from cdvft_server.archive import ArchiveLimits, read_archive
from cdvft_server.exceptions import BadArchive, TooLarge
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.archive_maker import GOOD, TEMPLATE, make_tar, make_zip, plain_tar

LIMITS = ArchiveLimits(weights=1 << 17, expansion=1 << 18, members=8, config=1 << 10, template=1 << 10)
ENTRIES = [*GOOD.items(), ("chat_template.jinja", TEMPLATE), ("sub/README.md", b"text" * 10), ("sub/", b"")]
SMALL = [(name, content[:300]) for name, content in ENTRIES]
SEEDS = [
    make_zip(SMALL),
    make_zip(SMALL, zipfile.ZIP_STORED),
    make_zip([("poet/" + name, content) for name, content in SMALL]),
    make_tar(SMALL),
    make_tar([("n" * 120 + "/" + name, content) for name, content in SMALL], tarfile.GNU_FORMAT),
]
PLAIN = [plain_tar(SMALL, form) for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]


def check(data: bytes) -> None:
    try:
        files, ignored = read_archive(io.BytesIO(data), LIMITS)
    except (BadArchive, TooLarge, InvalidAdapter):
        return
    assert isinstance(files, AdapterFiles)
    assert len(files.weights) <= LIMITS.weights
    assert len(files.config) <= LIMITS.config
    assert len(ignored) <= LIMITS.members
    for path in ignored:
        path.encode()  # goes into a JSON answer


magic = st.sampled_from([b"", b"PK\3\4", b"PK\5\6", b"\x1f\x8b", b"\x1f\x8b\x08\0\0\0\0\0\0\3"])


@settings(max_examples=150, deadline=None)
@given(magic, st.binary(max_size=2000))
def test_arbitrary_bytes(head: bytes, data: bytes) -> None:
    check(head + data)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=3000))
def test_arbitrary_tar_data(data: bytes) -> None:
    check(gzip.compress(data, 1))


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A good archive with a few bytes changed, cut out, doubled or inserted."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        position = draw(st.integers(0, max(len(data) - 1, 0)))
        end = position + draw(st.sampled_from([1, 2, 4, 8, 60, 512]))
        new = draw(st.binary(min_size=end - position, max_size=end - position) if end - position <= 8 else st.just(b""))
        action = draw(st.sampled_from(["change", "remove", "double", "insert", "move"]))
        if action == "change":
            data[position : position + len(new)] = new
        elif action == "remove":
            del data[position:end]
        elif action == "double":
            data[position:position] = data[position:end]
        elif action == "insert":
            data[position:position] = new
        else:
            data += data[position:end]
    return bytes(data)


@settings(max_examples=400, deadline=None)
@given(mutated(SEEDS))
def test_mutated_archives(data: bytes) -> None:
    check(data)


@settings(max_examples=200, deadline=None)
@given(mutated(PLAIN))
def test_mutated_tar_data_in_good_gzip(data: bytes) -> None:
    check(gzip.compress(data, 1))


names = st.text(st.sampled_from("ab./\\:é_ "), min_size=1, max_size=8) | st.sampled_from(
    ["adapter_config.json", "x/adapter_config.json", "adapter_model.safetensors", "x/adapter_model.safetensors"]
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(names, st.binary(max_size=20), max_size=6), st.booleans())
def test_any_members(entries: dict[str, bytes], as_zip: bool) -> None:
    check((make_zip if as_zip else make_tar)(entries.items()))

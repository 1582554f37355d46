"""Safetensors bytes: everything the header may lie about."""

import json
import pickle
import zipfile
from io import BytesIO
from typing import Any

import pytest
import safetensors.torch
import torch
from cdvft.errors import InvalidAdapter, TooLarge
from cdvft.tensorfile import read_tensors, write_tensors
from hypothesis import given
from hypothesis import strategies as st

GOOD = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1.5, -2.0])}


def raw(header: Any, data: bytes = b"\0" * 8) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes


def test_round_trip_whatever_the_order() -> None:
    data = write_tensors(GOOD)
    assert data == write_tensors(dict(reversed(GOOD.items())))
    again = read_tensors(data)
    assert again.keys() == GOOD.keys()
    assert all(torch.equal(again[name], GOOD[name]) for name in GOOD)
    strided = torch.arange(6.0).reshape(3, 2).T
    assert torch.equal(read_tensors(write_tensors({"t": strided}))["t"], strided)


def test_metadata_is_allowed_and_ignored() -> None:
    assert read_tensors(raw({"__metadata__": {"format": "pt"}, "a": entry()})).keys() == {"a"}


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"", "is empty (0 bytes)"),
        (b"1234567", "is truncated (7 bytes)"),
        ((100).to_bytes(8, "little") + b"{}", "is truncated: a header of 100 bytes in a file of 10"),
        (raw(b"{"), "the header is not valid JSON"),
        (raw(b"[]"), "the header must be a JSON object"),
        (raw(b"\xff\xfe"), "the header is not UTF-8"),
        (raw({}, b""), "has no tensors"),
        (raw({"__metadata__": {}}, b""), "has no tensors"),
        (raw({"__metadata__": {"a": 1}, "a": entry()}), "__metadata__ must map strings to strings"),
        (raw(b'{"a": 1, "a": 2}'), "duplicate key 'a'"),
        (raw({"a": 3}), "a must have exactly dtype, shape and data_offsets"),
        (raw({"a": entry(extra=1)}), "a must have exactly"),
        (raw({"a": {"dtype": "F32", "shape": [2]}}), "a must have exactly"),
        (raw({"a": entry(dtype="I16", shape=[1])}), "a has dtype 'I16'; accepted: F64, F32, F16, BF16, I64, I32"),
        (raw({"a": entry(dtype="U8", shape=[8])}), "a has dtype 'U8'"),
        (raw({"a": entry(dtype="F8_E4M3", shape=[8])}), "a has dtype 'F8_E4M3'"),
        (raw({"a": entry(dtype=["F32"])}), "a has dtype"),
        (raw({"a": entry(shape=[-2])}), "a has the shape"),
        (raw({"a": entry(shape=[2.0])}), "a has the shape"),
        (raw({"a": entry(shape=[True, 2])}), "a has the shape"),
        (raw({"a": entry(shape=2)}), "a has the shape"),
        (raw({"a": entry(shape=[1] * 9)}), "a has the shape"),
        (raw({"a": entry(shape=[1 << 60])}), "a has the shape"),
        (raw({"a": entry(shape=[0], data_offsets=[0, 0])}, b""), "a is empty (shape [0])"),
        (raw({"a": entry(shape=[1 << 40, 1 << 40])}), "a is F32"),
        (raw({"a": entry(shape=[3])}), "a is F32 [3], 12 bytes, but spans 8"),
        (raw({"a": entry(data_offsets=[8, 0])}), "a has data_offsets [8, 0]"),
        (raw({"a": entry(data_offsets=[0])}), "a has data_offsets [0]"),
        (raw({"a": entry(data_offsets=["0", "8"])}), "a has data_offsets"),
        (raw({"a": entry()}, b"\0" * 7), "a ends at byte 8, the file holds 7: truncated?"),
        (raw({"a": entry(shape=[1 << 20], data_offsets=[0, 1 << 22])}), "a ends at byte 4194304"),
        (raw({"a": entry()}, b"\0" * 9), "has 1 bytes that belong to no tensor"),
        (raw({"a": entry(), "b": entry()}), "b starts at byte 0, not at 8: overlap or gap"),
        (raw({"a": entry(), "b": entry(data_offsets=[4, 12])}, b"\0" * 12), "b starts at byte 4, not at 8"),
        (raw({"a": entry(), "b": entry(data_offsets=[12, 20])}, b"\0" * 20), "b starts at byte 12, not at 8"),
        (raw({"a" * 600: entry()}), "is a name of 600 characters, at most 512"),
        (pickle.dumps({"a": 1}), "is a pickle"),
    ],
)
def test_a_broken_file_is_refused(data: bytes, part: str) -> None:
    with pytest.raises(InvalidAdapter) as caught:
        read_tensors(data)
    assert str(caught.value).startswith("adapter_model.safetensors")
    assert part in str(caught.value)


def test_a_torch_checkpoint_is_called_a_pickle() -> None:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", b"x")
    with pytest.raises(InvalidAdapter, match="is a pickle, which is never loaded"):
        read_tensors(buffer.getvalue())


def test_a_header_that_was_accepted_once_is_checked_against_each_file() -> None:
    """Checks of equal headers are not repeated; which bytes follow is another matter."""
    good = raw({"a": entry()})
    for _ in range(2):
        read_tensors(good)
        with pytest.raises(InvalidAdapter, match="truncated"):
            read_tensors(good[:-1])
        with pytest.raises(InvalidAdapter, match="1 bytes that belong to no tensor"):
            read_tensors(good + b"x")
        with pytest.raises(TooLarge):
            read_tensors(good, max_header_bytes=8)
        with pytest.raises(InvalidAdapter, match="overlap or gap"):
            read_tensors(raw({"a": entry(), "b": entry()}))


def test_header_limit() -> None:
    padded = raw(json.dumps({"a": entry()}).encode().ljust(1 << 20))
    assert read_tensors(padded).keys() == {"a"}
    with pytest.raises(TooLarge, match="1048577 bytes long, at most 1048576"):
        read_tensors(raw(json.dumps({"a": entry()}).encode().ljust((1 << 20) + 1)))
    with pytest.raises(TooLarge, match="at most 16 are"):
        read_tensors(padded, max_header_bytes=16)


@given(st.data())
def test_no_mutation_does_more_than_be_refused(data) -> None:
    """Flip bytes or cut: either InvalidAdapter, or tensors that safetensors itself reads the same."""
    good = bytearray(write_tensors(GOOD))
    for _ in range(data.draw(st.integers(1, 3))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    mutated = bytes(good[: data.draw(st.integers(0, len(good)))]) if data.draw(st.booleans()) else bytes(good)
    try:
        tensors = read_tensors(mutated)
    except InvalidAdapter:
        return
    expected = safetensors.torch.load(mutated)
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor.nan_to_num(), expected[name].float().nan_to_num())


@given(st.binary(max_size=64))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidAdapter):
        read_tensors(data)


@pytest.mark.parametrize("length", [640, 896, 1152, 1408])
def test_a_header_of_any_length_is_no_pickle(length: int) -> None:
    """Its length in little endian begins with the bytes of a pickle's protocol 2 to 5."""
    tensors = {"a": torch.ones(1)}
    bare = len(safetensors.torch.save(tensors, metadata={"x": ""})) - 12
    data = safetensors.torch.save(tensors, metadata={"x": "y" * (length - bare)})
    assert data[:2] == bytes([0x80, length >> 8])
    assert torch.equal(read_tensors(data)["a"], tensors["a"])

"""Uploads that are almost right: a valid one of several methods, with one to four things changed, by a seed.

What is changed: the form's parts, the config's JSON, the safetensors' header or bytes, the template, the labels, the
archive's members or bytes, or the body as it is sent.
"""

import io
import json
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

from cdvft.backbone import Backbone
from cdvft.checkpoint import AdapterFiles, adapter_files
from cdvft.methods import METHODS

from tests.tiny import method_adapter, random_adapter

BOUNDARY = "fuzzboundary"
Body = tuple[bytes, dict[str, str]]

ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 2**31, 2**63, 2**64, 10**30, -(2**63), 0.0, -0.5, 1e308, 1e-320, "", "a", "q",
    "\0", "é" * 50, "\ud83d\ude00", "../..", "a" * 5000, "(a+)+$", "(?=x)", ".*", "[", "all-linear", "CDVFT", "LORA",
    [], {}, [[]], [None], [1, 2], ["q_proj"], ["a"] * 300, {"a": 1}, {"q_proj": -1}, {"": {}}, [[1, 2], [3]],
]  # fmt: skip
TEXTS = [
    "{{ messages[0].content }}", "{% for m in messages %}{{ m.content }}{% endfor %}", "{% for %}", "{{ 1 / 0 }}",
    "{{ ''.__class__.__mro__ }}", "{{ 'a' * 10 ** 8 }}", "{% if %}", "{{", "{% raw %}", "{{ 9 ** 9 }}", "\0",
    "{% set x = range(10) %}{{ x }}", "{{ cycler.__init__.__globals__ }}", "{% include 'x' %}", "é" * 9000,
]  # fmt: skip
LABELS = [
    '["a", "b"]', '["a"]', "[]", "[1]", "null", '{"a": 1}', "[", '["a", "a"]', '[""]', '["\\ud800"]', "[" * 3000,
    '["' + "x" * 9000 + '"]',
]  # fmt: skip
NAMES = ["fuzz"] * 3 + ["", "a/b", "x" * 97, "é", "tiny-llama", "..", "a\0b", "1", "latest", " fuzz", "a\r\nx: y"]
FIELDS = {
    "name": NAMES,
    "alias": ["prod", "latest", "7", "", "é", "a b"],
    "public": ["true", "false", "yes", ""],
    "description": ["", "d" * 1001, "\0", "é"],
    "labels": LABELS,
    "other": ["x"],
}
KINDS = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
DTYPES = ["F32", "F16", "BF16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "", "f32", 3, None]


def seeds_of(base: Backbone) -> list[AdapterFiles]:
    """Valid uploads: each method, a classifier, a regressor, one with a template."""
    adapters = [method_adapter(base.info, method, 0, k) for k, method in enumerate(METHODS)]
    adapters += [random_adapter(base.info, 1, "classification"), random_adapter(base.info, 2, "regression")]
    adapters.append(random_adapter(base.info, 3, template="{{ messages[0].content }}"))
    return [adapter_files(adapter, base.info) for adapter in adapters]


class Cases:
    """`case(seed)` is the same body for the same seed."""

    def __init__(self, base: Backbone) -> None:
        self._files = seeds_of(base)

    def case(self, seed: int) -> Body:
        rng = random.Random(seed)
        named = self._files[rng.randrange(len(self._files))].named()
        members = {name: bytes(data) for name, data in named.items()}
        changes: list[Callable[[random.Random, dict[str, bytes]], None]] = [_config, _header, _bytes, _template, _drop]
        for _ in range(rng.choice([0, 1, 1, 1, 2, 4])):
            rng.choice(changes)(rng, members)
        parts = _parts(rng, members)
        body = _multipart(parts)
        if rng.random() < 0.08:
            body = _mutated(rng, body)
        return body, {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}


def _config(rng: random.Random, members: dict[str, bytes]) -> None:
    try:
        config = json.loads(members["adapter_config.json"])
    except (KeyError, ValueError):
        return
    for _ in range(rng.randint(1, 3)):
        key = rng.choice([*config, "peft_type", "rank_pattern", "layers_to_transform", "exclude_modules", "unknown"])
        action = rng.random()
        if action < 0.2:
            config.pop(key, None)
        elif action < 0.3 and isinstance(config.get(key), dict) and config[key]:
            config[key][rng.choice(list(config[key]))] = rng.choice(ODD)
        else:
            config[key] = rng.choice(ODD)
    members["adapter_config.json"] = json.dumps(config).encode("utf-8", "surrogatepass")


def _header(rng: random.Random, members: dict[str, bytes]) -> None:
    name = "adapter_model.safetensors"
    data = members.get(name, b"")
    try:
        (size,) = struct.unpack_from("<Q", data)
        header, rest = json.loads(data[8 : 8 + size]), data[8 + size :]
        key = rng.choice(list(header))
        entry = header[key]
        action = rng.randrange(7)
        if action == 0:
            entry["shape"] = rng.choice([[], [0], [1], [-1], [2**40, 2**40], [3, 3], "x", None, [1.5]])
        elif action == 1:
            entry["data_offsets"] = [rng.choice([0, -1, 4, 2**62, len(rest)]), rng.choice([0, 4, 2**63, len(rest) + 4])]
        elif action == 2:
            entry["dtype"] = rng.choice(DTYPES)
        elif action == 3:
            header[rng.choice(["", "base_model.model.x.cdvft_circ", "é" * 99, key + ".weight"])] = header.pop(key)
        elif action == 4:
            del header[key]
        elif action == 5:
            header["__metadata__"] = rng.choice([{}, {"a": "b"}, {"a": 1}, [], "x", None])
        else:
            rest = rng.choice([b"", rest[:-3], rest + b"x", b"\xff" * len(rest), bytes(len(rest))])
        text = json.dumps(header).encode("utf-8", "surrogatepass")
        stated = rng.choice([len(text)] * 8 + [0, 2**63, len(text) - 1, 2**20 + 1])
        members[name] = struct.pack("<Q", stated) + text + rest
    except (ValueError, KeyError, TypeError, IndexError, struct.error):
        return


def _bytes(rng: random.Random, members: dict[str, bytes]) -> None:
    name = rng.choice(list(members) or ["adapter_config.json"])
    members[name] = _mutated(rng, members.get(name, b""))


def _template(rng: random.Random, members: dict[str, bytes]) -> None:
    text = rng.choice([*TEXTS, "".join(rng.choices("{}%#-ab '\"\n.|()[]", k=40))])
    members["chat_template.jinja"] = text.encode() if rng.random() < 0.9 else b"\xff\xfe"


def _drop(rng: random.Random, members: dict[str, bytes]) -> None:
    if members:
        del members[rng.choice(list(members))]


def _mutated(rng: random.Random, data: bytes) -> bytes:
    """A few bytes changed, cut out, doubled or put in."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(changed) + 1)
        end = start + rng.choice([1, 2, 4, 8, 64, 512])
        action = rng.randrange(4)
        if action == 0:
            changed[start:end] = rng.randbytes(min(end, len(changed)) - start)
        elif action == 1:
            del changed[start:end]
        elif action == 2:
            changed[start:start] = changed[start:end]
        else:
            changed[start:start] = rng.randbytes(rng.choice([1, 8]))
    return bytes(changed)


def _parts(rng: random.Random, members: dict[str, bytes]) -> list[tuple[str, str | None, bytes]]:
    """(name, filename, content) of each part."""
    parts: list[tuple[str, str | None, bytes]] = [("name", None, b"fuzz")]
    if rng.random() < 0.5 or "chat_template.jinja" in members:
        archive = _zip(rng, members) if rng.random() < 0.5 else _tar(rng, members)
        parts.append(("archive", "a", _mutated(rng, archive) if rng.random() < 0.2 else archive))
    else:
        names = {"adapter_config.json": "config", "adapter_model.safetensors": "weights"}
        parts += [(names.get(name, "other"), name, data) for name, data in members.items()]
    while rng.random() < 0.2:
        name = rng.choice(list(FIELDS))
        text = rng.choice(FIELDS[name])
        if name == "name" and rng.random() < 0.8:
            parts[0] = ("name", None, text.encode())
        else:
            parts.append((name, rng.choice([None, None, None, "f"]), text.encode()))
    if rng.random() < 0.05:
        parts.append(rng.choice(parts))
    if rng.random() < 0.05:
        parts.pop(rng.randrange(len(parts)))
    return parts


def _paths(rng: random.Random, members: dict[str, bytes]) -> dict[str, bytes]:
    """By their paths in an archive: at the top or in one folder, now and then one where it must not be."""
    folder = rng.choice(["", "", "folder/"])
    odd = rng.choice(["a/b/", "../", "/", "./", "c:\\", "é/"])
    return {(odd if rng.random() < 0.04 else folder) + name: data for name, data in members.items()}


def _zip(rng: random.Random, members: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        for path, data in _paths(rng, members).items():
            archive.writestr(path, data)
        for k in range(rng.choice([0] * 19 + [70])):
            archive.writestr(f"more{k}", b"")
    return content.getvalue()


def _tar(rng: random.Random, members: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz", compresslevel=1) as archive:
        for path, data in _paths(rng, members).items():
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            entry.type = rng.choice(KINDS) if rng.random() < 0.05 else tarfile.REGTYPE
            entry.linkname = "/etc/passwd" if entry.issym() or entry.islnk() else ""
            archive.addfile(entry, io.BytesIO(data) if entry.isreg() else None)
    return content.getvalue()


def _multipart(parts: list[tuple[str, str | None, bytes]]) -> bytes:
    lines = b""
    for name, filename, content in parts:
        disposition = f'form-data; name="{name}"' + (f'; filename="{filename}"' if filename else "")
        lines += f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + content + b"\r\n"
    return lines + f"--{BOUNDARY}--\r\n".encode()

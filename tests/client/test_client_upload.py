"""What an upload sends for each form."""

import io
import json
import os
import zipfile
from collections.abc import Callable
from email import message_from_bytes
from pathlib import Path
from typing import Any

import cdvft_client as c
import httpx
import pytest

from tests.client.harness import Script, adapter_body

Connect = Callable[..., Any]
CONFIG, WEIGHTS, TEMPLATE = b'{ "peft_type": "CDVFT" }\n', b"\x00\x01\r\n--weights", b"{{ messages }}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "reviews"
    made.mkdir()
    (made / "adapter_config.json").write_bytes(CONFIG)
    (made / "adapter_model.safetensors").write_bytes(WEIGHTS)
    (made / "optimizer.pt").write_bytes(b"not to be sent")
    return made


def uploaded(connect: Connect, *args: Any, **options: Any) -> dict[str, bytes]:
    """The form that an upload sends, part by part."""
    script = Script(httpx.Response(201, json=adapter_body()))
    assert connect(transport=script.transport).upload(*args, **options).created is True
    (request,) = script.requests
    assert (request.method, request.url.path) == ("POST", "/v1/adapters")
    head = b"content-type: " + request.headers["content-type"].encode() + b"\r\n\r\n"
    parts: Any = message_from_bytes(head + request.content).get_payload()
    form = {part.get_param("name", header="content-disposition"): part.get_payload(decode=True) for part in parts}
    assert len(form) == len(parts)
    return form


def test_a_folder_is_sent_as_config_and_weights_under_its_name(connect: Connect, folder: Path) -> None:
    assert uploaded(connect, folder) == {"name": b"reviews", "config": CONFIG, "weights": WEIGHTS}


def test_the_current_folder_has_a_name_too(connect: Connect, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert uploaded(connect, ".")["name"] == b"reviews"


def test_a_folder_with_a_template_is_sent_as_an_archive(connect: Connect, folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes(TEMPLATE)
    form = uploaded(connect, str(folder), name="other")
    assert form.keys() == {"name", "archive"}
    assert form["name"] == b"other"
    with zipfile.ZipFile(io.BytesIO(form["archive"])) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            "adapter_config.json": CONFIG,
            "adapter_model.safetensors": WEIGHTS,
            "chat_template.jinja": TEMPLATE,
        }


def test_every_option(connect: Connect, folder: Path) -> None:
    options: dict[str, Any] = {"alias": "prod", "public": False, "description": "für alle", "labels": ("bad", "gut")}
    form = uploaded(connect, folder, **options)
    assert form["alias"] == b"prod"
    assert form["public"] == b"false"
    assert form["description"].decode() == "für alle"
    assert json.loads(form["labels"]) == ["bad", "gut"]


@pytest.mark.parametrize("weights", ["path", "bytes"])
def test_config_and_weights(connect: Connect, folder: Path, weights: str) -> None:
    given = {"path": folder / "adapter_model.safetensors", "bytes": WEIGHTS}[weights]
    form = uploaded(connect, name="x", config={"peft_type": "CDVFT"}, weights=given)
    assert json.loads(form["config"]) == {"peft_type": "CDVFT"}
    assert form["weights"] == WEIGHTS
    assert uploaded(connect, name="x", config=CONFIG, weights=given)["config"] == CONFIG
    assert uploaded(connect, name="x", config=folder / "adapter_config.json", weights=given)["config"] == CONFIG


def test_an_archive_as_path_or_bytes(connect: Connect, tmp_path: Path) -> None:
    packed = tmp_path / "made.tar.gz"
    packed.write_bytes(b"\x1f\x8b and so on")
    for form in (
        uploaded(connect, packed, name="x"),
        uploaded(connect, name="x", archive=str(packed)),
        uploaded(connect, name="x", archive=packed.read_bytes()),
    ):
        assert form == {"name": b"x", "archive": b"\x1f\x8b and so on"}


def test_content_that_was_there_already(connect: Connect, folder: Path) -> None:
    script = Script(httpx.Response(200, json=adapter_body()))
    assert connect(transport=script.transport).upload(folder).created is False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of"),
        ({"name": "x"}, "exactly one of"),
        ({"archive": b"", "weights": b""}, "exactly one of"),
        ({"path": ".", "archive": b""}, "exactly one of"),
        ({"name": "x", "config": {}}, "go together"),
        ({"name": "x", "weights": b""}, "go together"),
        ({"config": {}, "weights": b""}, "name= is needed"),
        ({"archive": b"PK"}, "name= is needed"),
        ({"name": "x", "path": "adapter_model.safetensors"}, "one file of an adapter"),
        ({"name": "x", "archive": "adapter_model.bin"}, "one file of an adapter"),
    ],
)
def test_what_is_no_upload(connect: Connect, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        connect(transport=Script().transport).upload(**options)


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_folder_that_lacks_a_file(connect: Connect, folder: Path, missing: str) -> None:
    os.remove(folder / missing)
    with pytest.raises(FileNotFoundError, match=f"has no {missing}"):
        connect(transport=Script().transport).upload(folder)


def test_a_path_that_does_not_exist(connect: Connect, tmp_path: Path) -> None:
    for options in ({"name": "x"}, {}):
        with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; give a PEFT folder, a zip or a tar\.gz"):
            connect(transport=Script().transport).upload(tmp_path / "nowhere", **options)


def test_a_failed_upload_is_a_typed_error(connect: Connect, folder: Path) -> None:
    script = Script(httpx.Response(422, json={"error": {"message": "q_proj has no cdvft_circ", "code": "x"}}))
    with pytest.raises(c.UnprocessableAdapterError, match="q_proj has no cdvft_circ"):
        connect(transport=script.transport).upload(folder)

"""`POST /v1/adapters`: both forms, what they may hold, and that a refused upload leaves nothing."""

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import torch
from cdvft.checkpoint import AdapterFiles, adapter_files
from safetensors.torch import load, save

from tests.server.http.harness import Fleet, error_of, zipped
from tests.tiny import random_adapter

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def files_of(fleet: Fleet, seed: int, **options: Any) -> AdapterFiles:
    return adapter_files(random_adapter(fleet.base.info, seed, **options), fleet.base.info)


def post(fleet: Fleet, files: Any, **fields: str) -> httpx.Response:
    return fleet.live.client.post("/v1/adapters", data=fields, files=files)


def pair(files: AdapterFiles) -> dict[str, tuple[str, bytes]]:
    return {"config": ("c", files.config), "weights": ("w", files.weights)}


def tarred(files: AdapterFiles) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, data in {**files.named(), "README.md": b"read me"}.items():
            member = tarfile.TarInfo(f"own/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return content.getvalue()


def test_the_answer(decoder: Fleet) -> None:
    adapter = random_adapter(decoder.base.info, 20, "classification", ["b", "a", "ü"])
    files = adapter_files(adapter, decoder.base.info)
    answer = decoder.live.upload("answer", files, alias="prod", public="true", description="Größe ✓")
    assert answer.status_code == 201
    body = answer.json()
    created, error = body.pop("created_at"), body.pop("self_test")["max_error"]
    assert isinstance(created, int)
    assert 0 <= error < 1e-3
    assert body == {
        "id": "answer",
        "object": "adapter",
        "name": "answer",
        "version": 1,
        "digest": adapter.digest,
        "method": "cdvft",
        "base_model": "tiny-llama",
        "base_verified": True,
        "task": "classification",
        "labels": ["b", "a", "ü"],
        "num_parameters": adapter.num_parameters,
        "head_parameters": adapter.head_parameters,
        "bytes": len(files.config) + len(files.weights),
        "sites": sorted(site.name for site in adapter.spec.sites),
        "aliases": {"latest": 1, "prod": 1},
        "public": True,
        "description": "Größe ✓",
        "ignored_files": [],
    }
    described = decoder.live.get("/v1/adapters/answer").json()
    assert described.items() >= {**body, "created_at": created, "residency": "store", "hits": 0}.items()
    assert described["last_used"] is None


def test_all_forms_are_the_same_content(decoder: Fleet) -> None:
    """201 once; then 200, that version, and no pointer moves but an explicit alias."""
    files = files_of(decoder, 21)
    first = post(decoder, pair(files), name="forms")
    assert first.status_code == 201
    second = files_of(decoder, 22)
    assert post(decoder, pair(second), name="forms").json()["version"] == 2
    zip_again = post(decoder, {"archive": ("a.zip", zipped(files, "deep/"))}, name="forms")
    tar_again = post(decoder, {"archive": ("a.tgz", tarred(files))}, name="forms", alias="old")
    for again in (zip_again, tar_again):
        assert again.status_code == 200
        assert (again.json()["version"], again.json()["digest"]) == (1, first.json()["digest"])
    assert zip_again.json()["aliases"] == {"latest": 2}
    assert tar_again.json()["aliases"] == {"latest": 2, "old": 1}
    assert tar_again.json()["ignored_files"] == ["own/README.md"]


def test_the_download_is_the_first_upload_byte_for_byte(decoder: Fleet) -> None:
    files = files_of(decoder, 23, template=TEMPLATE)
    spaced = AdapterFiles(files.config.replace(b"\n", b"\n \t"), files.weights, files.template)
    assert decoder.live.upload("download", spaced).status_code == 201
    assert decoder.live.upload("download", files).status_code == 200  # the same adapter in other bytes
    for query in ("", "?version=1"):
        answer = decoder.live.get(f"/v1/adapters/download/download{query}")
        assert answer.headers["content-type"] == "application/zip"
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            assert {name: archive.read(name) for name in archive.namelist()} == spaced.named()
    with zipfile.ZipFile(io.BytesIO(decoder.live.get("/v1/adapters/writer/download").content)) as archive:
        assert sorted(archive.namelist()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_labels_of_the_form_are_for_configs_without(decoder: Fleet) -> None:
    files = files_of(decoder, 24, task="classification")
    config = json.loads(files.config)
    for key in ("labels", "problem_type", "head", "max_length"):
        config.pop(key, None)
    plain = AdapterFiles(json.dumps(config).encode(), files.weights)
    assert decoder.live.upload("plain-labels", plain).json()["labels"] == ["LABEL_0", "LABEL_1"]
    named = decoder.live.upload("form-labels", plain, labels='["down", "up"]')
    assert named.json()["labels"] == ["down", "up"]
    scores = decoder.live.classify("form-labels").json()["data"][0]["scores"]
    assert {entry["label"] for entry in scores} == {"down", "up"}
    refused = decoder.live.upload("two-labels", files, labels='["down", "up"]')
    assert (refused.status_code, error_of(refused)["code"]) == (422, "invalid_adapter")


def test_without_a_base_digest_it_is_not_verified(decoder: Fleet) -> None:
    files = files_of(decoder, 25)
    config = json.loads(files.config)
    del config["base_digest"]
    answer = decoder.live.upload("unverified", AdapterFiles(json.dumps(config).encode(), files.weights))
    assert (answer.status_code, answer.json()["base_verified"]) == (201, False)


Change = Callable[[Fleet, AdapterFiles], httpx.Response]


def form(**fields: str) -> Change:
    return lambda fleet, files: post(fleet, pair(files), **{"name": "refused", **fields})


def parts(*items: tuple[str, Any]) -> Change:
    def send(fleet: Fleet, files: AdapterFiles) -> httpx.Response:
        known = {"name": (None, "refused"), **pair(files), "archive": ("a.zip", zipped(files))}
        return fleet.live.client.post(
            "/v1/adapters", files=[item if isinstance(item, tuple) else (item, known[item]) for item in items]
        )

    return send


def body(content: bytes, content_type: str = "multipart/form-data; boundary=x") -> Change:
    return lambda fleet, files: fleet.live.client.post(
        "/v1/adapters", content=content, headers={"content-type": content_type}
    )


def config(**changes: Any) -> Change:
    def send(fleet: Fleet, files: AdapterFiles) -> httpx.Response:
        changed = json.dumps({**json.loads(files.config), **changes}).encode()
        return fleet.live.upload("refused", AdapterFiles(changed, files.weights))

    return send


def weights(change: Callable[[bytes], bytes]) -> Change:
    return lambda fleet, files: fleet.live.upload("refused", AdapterFiles(files.config, change(files.weights)))


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    def changed(data: bytes) -> bytes:
        read = load(data)
        change(read)
        return save(read)

    return weights(changed)


def archive(make: Callable[[AdapterFiles], bytes]) -> Change:
    return lambda fleet, files: post(fleet, {"archive": ("a", make(files))}, name="refused")


def linked(files: AdapterFiles) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as own:
        member = tarfile.TarInfo("adapter_config.json")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        own.addfile(member)
    return content.getvalue()


def with_member(name: str) -> Callable[[AdapterFiles], bytes]:
    def make(files: AdapterFiles) -> bytes:
        content = io.BytesIO(zipped(files))
        with zipfile.ZipFile(content, "a") as own:
            own.writestr(name, b"x")
        return content.getvalue()

    return make


def poison(read: dict[str, torch.Tensor]) -> None:
    next(iter(read.values())).view(-1)[0] = float("nan")


def rename(read: dict[str, torch.Tensor]) -> None:
    read["base_model.model.model.layers.9.self_attn.q_proj.cdvft_circ"] = torch.ones(1)


def long_header(data: bytes) -> bytes:
    return (len(data) * 1000).to_bytes(8, "little") + data[8:]


REFUSALS: dict[str, tuple[Change, int, str]] = {
    "json": (body(b"{}", "application/json"), 415, "unsupported_media_type"),
    "no content type": (body(b"{}", ""), 415, "unsupported_media_type"),
    "no boundary": (body(b"{}", "multipart/form-data"), 400, "invalid_request"),
    "no parts": (body(b"--x--\r\n"), 400, "invalid_request"),
    "not multipart at all": (body(b"hello"), 400, "invalid_request"),
    "a part without a name": (
        body(b"--x\r\ncontent-disposition: form-data\r\n\r\na\r\n--x--\r\n"),
        400,
        "invalid_request",
    ),
    "a form that ends early": (
        body(b'--x\r\ncontent-disposition: form-data; name="name"\r\n\r\nrefu'),
        400,
        "invalid_request",
    ),
    "an empty name": (form(name=""), 400, "invalid_request"),
    "a malformed name": (form(name="../up"), 400, "invalid_request"),
    "a long name": (form(name="a" * 97), 400, "invalid_request"),
    "the base's name": (form(name="tiny-llama"), 409, "conflict"),
    "an unknown part": (form(colour="red"), 400, "invalid_request"),
    "no name": (parts("config", "weights"), 400, "invalid_request"),
    "no files": (parts("name"), 400, "invalid_request"),
    "no weights": (parts("name", "config"), 400, "invalid_request"),
    "both forms": (parts("name", "config", "weights", "archive"), 400, "invalid_request"),
    "two names": (parts("name", "name", "config", "weights"), 400, "invalid_request"),
    "two configs": (parts("name", "config", "config", "weights"), 400, "invalid_request"),
    "a name as a file": (parts(("name", ("f", b"refused")), "config", "weights"), 400, "invalid_request"),
    "a config as text": (parts("name", ("config", (None, "{}")), "weights"), 400, "invalid_request"),
    "an alias that is a number": (form(alias="12"), 400, "invalid_request"),
    "a malformed alias": (form(alias="a b"), 400, "invalid_request"),
    "public maybe": (form(public="maybe"), 400, "invalid_request"),
    "labels that are no JSON": (form(labels="a,b"), 400, "invalid_request"),
    "labels that are no list": (form(labels='{"a": 1}'), 400, "invalid_request"),
    "labels that are numbers": (form(labels="[1, 2]"), 400, "invalid_request"),
    "no labels": (form(labels="[]"), 400, "invalid_request"),
    "labels for an lm adapter": (form(labels='["a", "b"]'), 422, "invalid_adapter"),
    "a long description": (form(description="a" * 1001), 413, "too_large"),
    "a description with NUL": (form(description="a\0b"), 400, "invalid_request"),
    "513 labels": (form(labels=json.dumps([str(i) for i in range(513)])), 413, "too_large"),
    "a field of 2 MiB": (form(description="a" * (2 << 20)), 413, "too_large"),
    "a config of 2 MiB": (config(base_model_name_or_path="a" * (2 << 20)), 413, "too_large"),
    "a config that is not JSON": (
        lambda fleet, files: fleet.live.upload("refused", AdapterFiles(b"{", files.weights)),
        422,
        "invalid_adapter",
    ),
    "an unknown option": (config(use_magic=True), 422, "invalid_adapter"),
    "an alpha beyond float32": (config(alpha=1e39), 422, "invalid_adapter"),
    "another method": (config(peft_type="LOHA"), 422, "invalid_adapter"),
    "another base": (config(base_digest="sha256:" + "0" * 64), 422, "invalid_adapter"),
    "a target without tensors": (config(target_modules=["q_proj", "k_proj", "v_proj"]), 422, "invalid_adapter"),
    "another partition": (config(partition_size=4), 422, "invalid_adapter"),
    "NaN": (tensors(poison), 422, "invalid_adapter"),
    "a tensor of no site": (tensors(rename), 422, "invalid_adapter"),
    "a missing tensor": (tensors(lambda read: read.popitem()), 422, "invalid_adapter"),
    "no weights at all": (weights(lambda data: b""), 422, "invalid_adapter"),
    "truncated weights": (weights(lambda data: data[:-10]), 422, "invalid_adapter"),
    "bytes too many": (weights(lambda data: data + b"0000"), 422, "invalid_adapter"),
    "a pickle": (weights(lambda data: b"\x80\x04."), 422, "invalid_adapter"),
    "a header of 3 MB": (weights(long_header), 413, "too_large"),
    "no archive": (archive(lambda files: b"hello"), 400, "invalid_request"),
    "half an archive": (archive(lambda files: zipped(files)[:300]), 400, "invalid_request"),
    "an archive with ..": (archive(with_member("../../etc/passwd")), 400, "invalid_request"),
    "an absolute member": (archive(with_member("/etc/passwd")), 400, "invalid_request"),
    "a link": (archive(linked), 400, "invalid_request"),
    "an archive without weights": (
        archive(lambda files: zipped(AdapterFiles(files.config, b"")).replace(b"adapter_model", b"another_model")),
        422,
        "invalid_adapter",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_refused(decoder: Fleet, name: str) -> None:
    change, status, code = REFUSALS[name]
    with decoder.unharmed():
        answer = change(decoder, files_of(decoder, 30))
        error = error_of(answer)
        assert (answer.status_code, error["code"]) == (status, code), error


def test_a_failed_self_test(decoder: Fleet) -> None:
    """Finite in fp32, but not what comes out of the layers."""
    with decoder.unharmed():
        answer = tensors(lambda read: [tensor.mul_(1e18) for tensor in read.values()])(decoder, files_of(decoder, 31))
        error = error_of(answer)
        assert (answer.status_code, error["code"]) == (422, "invalid_adapter")


@pytest.fixture(scope="module")
def small(llama: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A server with small limits."""
    from tests.server.http.conftest import config_for
    from tests.server.http.harness import Live

    folder = tmp_path_factory.mktemp("small")
    limits = {"max_weights_bytes": 20_000, "max_archive_members": 4, "max_json_bytes": 1000, "max_labels": 3}
    with Live(config_for(llama, folder, **limits)) as live:
        yield Fleet(live, llama, folder)


def big(files: AdapterFiles) -> AdapterFiles:
    return AdapterFiles(files.config, files.weights + bytes(20_000))


OVER: dict[str, Change] = {
    "weights": lambda fleet, files: fleet.live.upload("over", big(files)),
    "weights in an archive": lambda fleet, files: post(fleet, {"archive": ("a.zip", zipped(big(files)))}, name="over"),
    "an archive that expands": lambda fleet, files: post(fleet, {"archive": ("a.zip", bomb(files))}, name="over"),
    "a declared length": lambda fleet, files: fleet.live.client.post(
        "/v1/adapters", content=bytes(3 << 20), headers={"content-type": "multipart/form-data; boundary=x"}
    ),
    "no declared length": lambda fleet, files: fleet.live.client.post(
        "/v1/adapters", content=endless(), headers={"content-type": "multipart/form-data; boundary=x"}
    ),
    "labels": lambda fleet, files: fleet.live.upload("over", four_labels(fleet)),
}


def bomb(files: AdapterFiles) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as own:
        for name, data in {**files.named(), "adapter_model.safetensors": bytes(5 << 20)}.items():
            own.writestr(name, data)
    return content.getvalue()


def endless() -> Iterator[bytes]:
    yield b'--x\r\ncontent-disposition: form-data; name="weights"; filename="w"\r\n\r\n'
    for _ in range(48):
        yield bytes(1 << 16)


def four_labels(fleet: Fleet) -> AdapterFiles:
    return files_of(fleet, 33, task="classification", labels=["a", "b", "c", "d"])


@pytest.mark.parametrize("name", OVER)
def test_limits_of_uploads(small: Fleet, name: str) -> None:
    with small.unharmed():
        answer = OVER[name](small, files_of(small, 32))
        error = error_of(answer)
        assert (answer.status_code, error["code"]) == (413, "too_large"), error


def test_the_most_members(small: Fleet) -> None:
    content = zipped(files_of(small, 32))
    for count, status in ((4, 201), (5, 413)):
        own = io.BytesIO(content)
        with zipfile.ZipFile(own, "a") as filled:
            for i in range(count - 2):
                filled.writestr(f"extra-{i}.txt", b"x")
        answer = post(small, {"archive": ("a.zip", own.getvalue())}, name=f"members-{count}")
        assert answer.status_code == status, answer.text


def test_the_largest_json(small: Fleet) -> None:
    answer = small.live.complete("tiny-llama", "a" * 1000)
    assert (answer.status_code, error_of(answer)["code"]) == (413, "too_large")

"""kill -9 during a loop of uploads, ten rounds: every 201 is there with its digest and answers, nothing is partial."""

import io
import random
import threading
import zipfile
from pathlib import Path

import pytest
from cdvft.backbone import Backbone, load_backbone
from cdvft.checkpoint import adapter_files, read_adapter
from cdvft.files import AdapterFiles
from cdvft_client import APIConnectionError, Client

from tests.e2e import inputs, serving
from tests.tiny import random_adapter

pytestmark = pytest.mark.trial

ROUNDS = 10


def upload_until_killed(client: Client, backbone: Backbone, first: int, enough: threading.Event) -> dict[str, str]:
    """{name: digest} of every upload that was answered."""
    acknowledged: dict[str, str] = {}
    for seed in range(first, first + 10_000):
        files = adapter_files(random_adapter(backbone.info, seed), backbone.info)
        try:
            made = client.upload(name=f"adapter-{seed}", config=files.config, weights=files.weights)
        except APIConnectionError:
            return acknowledged
        acknowledged[made.name] = made.digest
        if len(acknowledged) >= 3:
            enough.set()
    return acknowledged


def check_all_whole(client: Client, backbone: Backbone, acknowledged: dict[str, str]) -> int:
    """Every acknowledged adapter is listed with its digest, every listed one is complete and answers."""
    listed = {adapter.name: adapter.digest for adapter in client.adapters()}
    assert {name: listed.get(name) for name in acknowledged} == acknowledged
    for name, digest in listed.items():
        with zipfile.ZipFile(io.BytesIO(client.download(name))) as archive:
            files = AdapterFiles(archive.read("adapter_config.json"), archive.read("adapter_model.safetensors"))
        assert read_adapter(files, backbone.info).digest == digest
        answer = client.complete(name, "Once upon a time", max_tokens=2, temperature=0)
        assert answer.adapter.digest == digest
    return len(listed)


def test_ten_kills_lose_nothing(tmp_path: Path) -> None:
    base = inputs.model("stories260k")
    backbone = load_backbone(str(base))
    acknowledged: dict[str, str] = {}
    rng = random.Random()
    for turn in range(ROUNDS):
        server = serving.start(tmp_path / "store.db", "--base", str(base))
        with Client(server.url, max_retries=0) as client:
            enough, found = threading.Event(), {}
            uploader = threading.Thread(
                target=lambda c=client, t=turn, e=enough, f=found: f.update(
                    upload_until_killed(c, backbone, t * 10_000, e)
                )
            )
            uploader.start()
            assert enough.wait(60)
            enough.clear()
            enough.wait(rng.uniform(0.0, 0.3))  # some point inside a later upload
            server.kill()
            uploader.join()
        acknowledged |= found
        with serving.running(tmp_path / "store.db", "--base", str(base)) as server, Client(server.url) as client:
            listed = check_all_whole(client, backbone, acknowledged)
        print(f"round {turn + 1}: {len(acknowledged)} acknowledged, {listed} listed, all whole")

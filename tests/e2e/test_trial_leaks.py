"""2,000 mixed requests, good and bad: no KV span, adapter row or file descriptor leaks; memory stays flat."""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cdvft.backbone import load_backbone
from cdvft.checkpoint import adapter_files
from cdvft_client import APIStatusError, Client

from tests.e2e import inputs, serving
from tests.tiny import random_adapter

pytestmark = pytest.mark.trial

REQUESTS, WARM_UP, CLIENTS = 2000, 500, 16


def request(client: Client, seed: int) -> str:
    """One request of a random kind; returns its kind."""
    rng = random.Random(seed)
    kind = rng.choice(["complete", "complete", "chat", "stream", "abandon", "classify", "mixed", "bad", "unknown"])
    lm, head = f"lm-{rng.randrange(8)}", f"head-{rng.randrange(8)}"
    prompt = "Once upon a time " * rng.randint(1, 8)
    try:
        if kind == "complete":
            client.complete(lm, prompt, max_tokens=rng.randint(1, 40), n=rng.choice([1, 1, 3]), seed=seed)
        elif kind == "chat":
            client.chat(lm, [{"role": "user", "content": prompt}], max_tokens=rng.randint(1, 40))
        elif kind in ("stream", "abandon"):
            with client.complete_stream(lm, prompt, max_tokens=200) as stream:
                for count, _ in enumerate(stream):
                    if kind == "abandon" and count > 3:
                        break
        elif kind == "classify":
            client.classify(head, [prompt] * rng.randint(1, 6))
        elif kind == "mixed":
            client.classify([f"head-{k}" for k in range(8)], [prompt] * 8)
        elif kind == "bad":
            client.complete(lm, prompt, max_tokens=100_000)
        else:
            client.complete("nobody", prompt)
    except APIStatusError as error:
        if (kind, error.status_code) not in {("bad", 400), ("unknown", 404)}:
            raise
    return kind


def test_nothing_leaks(tmp_path: Path) -> None:
    base = inputs.model("stories260k")
    info = load_backbone(str(base)).info
    with (
        serving.running(tmp_path / "store.db", "--base", str(base)) as server,
        Client(server.url) as client,
        ThreadPoolExecutor(CLIENTS) as pool,
    ):
        for k in range(8):
            labels = [str(label) for label in range(2 + k)]
            for name, adapter in (
                (f"lm-{k}", random_adapter(info, k, scale=0.2)),
                (f"head-{k}", random_adapter(info, 100 + k, "classification", labels, 0.2)),
            ):
                files = adapter_files(adapter, info)
                client.upload(name=name, config=files.config, weights=files.weights)
        list(pool.map(lambda seed: request(client, seed), range(WARM_UP)))
        files_before, memory_before = server.open_files(), server.resident_bytes()
        kinds = list(pool.map(lambda seed: request(client, seed), range(WARM_UP, WARM_UP + REQUESTS)))
        serving.wait_until(lambda: server.metric("cdvft_requests_running") == 0, "every request ended")
        files_after, memory_after = server.open_files(), server.resident_bytes()
        print({kind: kinds.count(kind) for kind in set(kinds)})
        print(f"file descriptors {files_before} -> {files_after}")
        print(f"resident memory {memory_before >> 20} -> {memory_after >> 20} MiB")
        assert server.metric("cdvft_kv_tokens_used") == 0
        assert server.metric("cdvft_adapter_leases") == 0
        assert files_after <= files_before + 4
        assert memory_after < memory_before * 1.05 + (8 << 20)
        assert client.complete("lm-0", "Once", max_tokens=3, temperature=0).choices

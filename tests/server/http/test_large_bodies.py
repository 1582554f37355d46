"""Large bodies keep nobody waiting: they are counted, then read off the loop, and refused with one error."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from cdvft import formatting
from cdvft_server import bodies

from tests.server.http.harness import WAIT, Fleet, error_of
from tests.tiny import random_adapter

SIZE = 8 << 20
JSON = {"content-type": "application/json"}


def filled(start: bytes, item: bytes, end: bytes) -> bytes:
    """As many items as fit."""
    return start + b",".join([item] * ((SIZE - len(start) - len(end)) // (len(item) + 1))) + end


def keys(count: int) -> bytes:
    return b",".join(b'"%d":0' % k for k in range(count))


C, H, K = "/v1/completions", "/v1/chat/completions", "/v1/classify"
PROMPT, CHAT, CLASSIFY = b'{"model":"writer","prompt":', b'{"model":"writer","messages":', b'{"model":"judge","input":'
CASES: dict[str, tuple[str, bytes, str]] = {
    "empty messages": (H, filled(CHAT + b"[", b"{}", b"]}"), "lists, objects and keys"),
    "messages": (H, filled(CHAT + b"[", b'{"role":"user","content":"a"}', b"]}"), "lists, objects and keys"),
    "empty parts": (H, filled(CHAT + b'[{"role":"user","content":[', b"{}", b"]}]}"), "lists, objects and keys"),
    "lists of one id": (C, filled(PROMPT + b"[", b"[1]", b"]}"), "lists, objects and keys"),
    "unknown fields": (C, PROMPT + b'"a",' + keys(600_000) + b"}", "lists, objects and keys"),
    "metadata": (C, PROMPT + b'"a","metadata":{' + keys(600_000) + b"}}", "lists, objects and keys"),
    "nesting": (C, PROMPT + b"[" * 4_000_000, "lists, objects and keys"),
    "ids": (C, filled(PROMPT + b"[", b"1", b"]}"), "tokens"),
    "texts": (C, filled(PROMPT + b"[", b'"a"', b"]}"), "prompts, at most 128"),
    "stop ids": (C, filled(PROMPT + b'"a","stop_token_ids":[', b"1", b"]}"), "stop_token_ids, at most 1024"),
    "inputs": (K, filled(CLASSIFY + b"[", b'"a"', b"]}"), "inputs, at most 1024"),
    "models": (K, filled(b'{"input":"a","model":[', b'"judge"', b"]}"), "models, at most 1024"),
    "5,000 messages": (H, CHAT + b"[" + b",".join([b"{}"] * 5000) + b"]}", "5000 messages, at most 4096"),
    "20,000 unknown fields": (C, PROMPT + b'"a",' + keys(20_000) + b"}", "unknown field '0'"),
    "a duplicate of 60,000": (
        C,
        PROMPT + b'"a","metadata":{' + keys(60_000) + b',"59999":0}}',
        "duplicate key '59999'",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_large_bodies_are_refused(decoder: Fleet, name: str) -> None:
    path, body, words = CASES[name]
    with decoder.unharmed():
        answer = decoder.live.client.post(path, content=body, headers=JSON)
        assert answer.status_code in (400, 413)
        assert words in error_of(answer)["message"]


def test_brackets_and_colons_in_a_text_are_no_nodes(decoder: Fleet) -> None:
    answer = decoder.live.complete("writer", '[{":' * 100_000)
    assert answer.status_code == 400
    assert "tokens" in error_of(answer)["message"]


def test_the_server_answers_while_a_large_body_is_read(decoder: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, read_on, parse = threading.Event(), threading.Event(), bodies.parse_json

    def slow(data: bytes, *limits: int) -> Any:
        if len(data) > 100_000:
            begun.set()
            assert read_on.wait(WAIT / 2)
        return parse(data, *limits)

    monkeypatch.setattr(bodies, "parse_json", slow)
    with ThreadPoolExecutor(1) as pool:
        large = pool.submit(decoder.live.complete, "writer", ["a"] * 3, user="u" * 200_000)
        try:
            assert begun.wait(WAIT)
            assert httpx.get(f"{decoder.live.url}/health", timeout=WAIT / 4).status_code == 200
            assert decoder.live.complete("writer").status_code == 200
        finally:
            read_on.set()
        assert large.result().status_code == 200
    decoder.live.wait_until_idle()


@pytest.fixture
def read(decoder: Fleet, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many characters the tokenizer was given, call by call."""
    sizes: list[int] = []
    encode = formatting._encode

    def counting(tokenizer: Any, text: str, *rest: Any, **options: Any) -> Any:
        sizes.append(len(text))
        return encode(tokenizer, text, *rest, **options)

    monkeypatch.setattr(formatting, "_encode", counting)
    return sizes


def test_a_text_far_beyond_the_context_is_not_tokenised(decoder: Fleet, read: list[int]) -> None:
    """The tiny base's context is 256 tokens, its adapters' inputs are as long."""
    live, text = decoder.live, "a " * 4_000_000
    message = [{"role": "user", "content": text}]
    asked = {
        "prompt 0: the prompt's 8000000 characters are more than the 256 tokens": live.complete("writer", text),
        "prompt 1: the prompt's 8000000 characters": live.complete("writer", ["a", text]),
        "characters are more than the 256 tokens": live.post(H, {"model": "writer", "messages": message}),
        "input 0: the input's 8000000 characters are more than 256 tokens": live.classify("judge", text),
    }
    for words, answer in asked.items():
        assert answer.status_code == 400
        assert words in error_of(answer)["message"]
    assert live.classify("judge", text, truncate=True).json()["usage"]["prompt_tokens"] == 256
    assert sum(read) < 50_000


def test_what_an_adapters_template_writes_is_limited(decoder: Fleet, read: list[int]) -> None:
    template = "{% for i in range(300) %}{{ 'a' * 100000 }}{% endfor %}"
    decoder.add("wordy", random_adapter(decoder.base.info, 5, template=template))
    answer = decoder.live.post(H, {"model": "wordy", "messages": [{"role": "user", "content": "a"}]})
    assert (answer.status_code, read) == (400, [])
    assert "wrote 30000000 bytes" in error_of(answer)["message"]
    del decoder.adapters["wordy"]
    decoder.live.client.delete("/v1/adapters/wordy")

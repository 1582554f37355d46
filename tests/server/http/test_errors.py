"""One case for each row of the error table, and what a client can send besides: always the right status and code, never
a trace, and afterwards the engine lives, good requests answer as before and the store is unchanged."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from cdvft.checkpoint import AdapterFiles, adapter_files

from tests.server.http.harness import Fleet, error_of
from tests.tiny import random_adapter

JSON = {"content-type": "application/json"}
Ask = Callable[[Fleet], httpx.Response]


def complete(**fields: Any) -> Ask:
    return lambda fleet: fleet.live.post("/v1/completions", {"model": "writer", "prompt": "a", **fields})


def chat(**fields: Any) -> Ask:
    body = {"model": "writer", "messages": [{"role": "user", "content": "a"}], **fields}
    return lambda fleet: fleet.live.post("/v1/chat/completions", body)


def classify(**fields: Any) -> Ask:
    return lambda fleet: fleet.live.post("/v1/classify", {"model": "judge", "input": "a", **fields})


def raw(content: bytes, headers: dict[str, str] = JSON) -> Ask:
    return lambda fleet: fleet.live.client.post("/v1/completions", content=content, headers=headers)


def get(path: str, method: str = "GET", **options: Any) -> Ask:
    return lambda fleet: fleet.live.client.request(method, path, **options)


SAID = {"role": "user", "content": "a"}
PICTURE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}
NO_STRING = "Input should be a valid string (got 3)"
REMOVE = "in the body; remove it or see /openapi.json for those there are"
GENERATION: dict[str, tuple[Ask, int, str]] = {
    "malformed json": (raw(b'{"model": "writer"'), 400, "invalid_request"),
    "an empty body": (raw(b""), 400, "invalid_request"),
    "not an object": (raw(b"[1, 2]"), 400, "invalid_request"),
    "a bare string": (raw(b'"writer"'), 400, "invalid_request"),
    "not utf-8": (raw(b'{"model": "\xff"}'), 400, "invalid_request"),
    "utf-16": (raw('{"model": "writer", "prompt": "a"}'.encode("utf-16")), 400, "invalid_request"),
    "half a surrogate pair": (raw(rb'{"model": "writer", "prompt": "\ud800"}'), 400, "invalid_request"),
    "half a pair as a name": (raw(rb'{"model": "\udfff", "prompt": "a"}'), 400, "invalid_request"),
    "NaN": (raw(b'{"model": "writer", "prompt": "a", "temperature": NaN}'), 400, "invalid_request"),
    "Infinity": (raw(b'{"model": "writer", "prompt": "a", "temperature": -Infinity}'), 400, "invalid_request"),
    "1e999": (raw(b'{"model": "writer", "prompt": "a", "temperature": 1e999}'), 400, "invalid_request"),
    "deep nesting": (raw(b'{"model": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"), 400, "invalid_request"),
    "deep objects": (raw(b'{"metadata": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001), 400, "invalid_request"),
    "5,000 digits": (raw(b'{"model": "writer", "prompt": "a", "n": ' + b"9" * 5000 + b"}"), 400, "invalid_request"),
    "a duplicate key": (raw(b'{"model": "writer", "model": "poet", "prompt": "a"}'), 400, "invalid_request"),
    "an unknown field": (complete(temprature=1), 400, "invalid_request"),
    "an unknown stream option": (complete(stream=True, stream_options={"usage": True}), 400, "invalid_request"),
    "stream options without a stream": (complete(stream_options={"include_usage": True}), 400, "invalid_request"),
    "no model": (raw(b'{"prompt": "a"}'), 400, "invalid_request"),
    "no prompt": (raw(b'{"model": "writer"}'), 400, "invalid_request"),
    "a number as a model": (complete(model=3), 400, "invalid_request"),
    "a string as a number": (complete(temperature="1"), 400, "invalid_request"),
    "true as a number": (complete(n=True), 400, "invalid_request"),
    "a fraction of a token": (complete(max_tokens=2.5), 400, "invalid_request"),
    "a string as a flag": (complete(stream="yes"), 400, "invalid_request"),
    "negative temperature": (complete(temperature=-0.1), 400, "invalid_request"),
    "a temperature of 101": (complete(temperature=101), 400, "invalid_request"),
    "top_p 0": (complete(top_p=0), 400, "invalid_request"),
    "top_p above 1": (complete(top_p=1.1), 400, "invalid_request"),
    "negative top_k": (complete(top_k=-1), 400, "invalid_request"),
    "n 0": (complete(n=0), 400, "invalid_request"),
    "n 17": (complete(n=17), 400, "invalid_request"),
    "no tokens": (complete(max_tokens=0), 400, "invalid_request"),
    "two token limits": (complete(max_tokens=3, max_completion_tokens=4), 400, "invalid_request"),
    "a seed of 65 bits": (complete(seed=2**63), 400, "invalid_request"),
    "five stops": (complete(stop=list("abcde")), 400, "invalid_request"),
    "an empty stop": (complete(stop=[""]), 400, "invalid_request"),
    "a number as a stop": (complete(stop=[1]), 400, "invalid_request"),
    "a stop id beyond the vocabulary": (complete(stop_token_ids=[259]), 400, "invalid_request"),
    "an enormous stop id": (complete(stop_token_ids=[10**400]), 400, "invalid_request"),
    "an empty prompt": (complete(prompt=""), 400, "invalid_request"),
    "no prompts": (complete(prompt=[]), 400, "invalid_request"),
    "an empty prompt among others": (complete(prompt=["a", ""]), 400, "invalid_request"),
    "empty ids": (complete(prompt=[[1], []]), 400, "invalid_request"),
    "text and ids": (complete(prompt=["a", [1]]), 400, "invalid_request"),
    "true as an id": (complete(prompt=[True]), 400, "invalid_request"),
    "an id beyond the vocabulary": (complete(prompt=[1, 259]), 400, "invalid_request"),
    "a negative id": (complete(prompt=[-1]), 400, "invalid_request"),
    "an enormous id": (complete(prompt=[10**400]), 400, "invalid_request"),
    "too long for the context": (complete(prompt=[5] * 256), 400, "invalid_request"),
    "text too long for the context": (complete(prompt="a" * 300), 400, "invalid_request"),
    "more tokens than the context has": (complete(max_tokens=300), 400, "invalid_request"),
    "enormous max_tokens": (complete(max_tokens=10**400), 400, "invalid_request"),
    "no messages": (chat(messages=[]), 400, "invalid_request"),
    "an unknown role": (chat(messages=[{"role": "narrator", "content": "a"}]), 400, "invalid_request"),
    "no content": (chat(messages=[{"role": "user"}]), 400, "invalid_request"),
    "null content": (chat(messages=[{"role": "user", "content": None}]), 400, "invalid_request"),
    "an image": (chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), 400, "invalid_request"),
    "a message with another key": (
        chat(messages=[{"role": "user", "content": "a", "x": 1}]),
        400,
        "invalid_request",
    ),
    "a prompt for chat": (chat(prompt="a"), 400, "invalid_request"),
    "logprobs": (complete(logprobs=2), 400, "unsupported_parameter"),
    "logprobs 0": (complete(logprobs=0), 400, "unsupported_parameter"),
    "chat logprobs": (chat(logprobs=True), 400, "unsupported_parameter"),
    "echo": (complete(echo=True), 400, "unsupported_parameter"),
    "best_of": (complete(best_of=2), 400, "unsupported_parameter"),
    "suffix": (complete(suffix="b"), 400, "unsupported_parameter"),
    "presence_penalty": (complete(presence_penalty=0.5), 400, "unsupported_parameter"),
    "frequency_penalty": (chat(frequency_penalty=-1), 400, "unsupported_parameter"),
    "logit_bias": (complete(logit_bias={"5": 1}), 400, "unsupported_parameter"),
    "tools": (chat(tools=[{"type": "function"}]), 400, "unsupported_parameter"),
    "response_format": (chat(response_format={"type": "json_object"}), 400, "unsupported_parameter"),
    "a classifier that completes": (complete(model="judge"), 400, "wrong_task"),
    "a regression that chats": (chat(model="grader"), 400, "wrong_task"),
    "another mode": (
        lambda f: f.live.client.post(
            "/v1/classify", json={"model": "judge", "input": "a"}, headers={"x-adapter-mode": "lora"}
        ),
        400,
        "invalid_request",
    ),
    "an unknown adapter": (complete(model="nobody"), 404, "model_not_found"),
    "an unknown alias": (complete(model="writer@production"), 404, "model_not_found"),
    "an unknown version": (complete(model="writer@2"), 404, "model_not_found"),
    "version 0": (complete(model="writer@0"), 404, "model_not_found"),
    "an enormous version": (complete(model="writer@" + "9" * 30), 404, "model_not_found"),
    "an unknown digest": (complete(model="writer@sha256:" + "0" * 12), 404, "model_not_found"),
    "a short digest": (complete(model="writer@sha256:abc"), 404, "model_not_found"),
    "another tenant's": (complete(model="somebody/writer"), 404, "model_not_found"),
    "a malformed model": (complete(model="../writer"), 404, "model_not_found"),
    "an empty model": (complete(model=""), 404, "model_not_found"),
    "a model of spaces": (chat(model="  "), 404, "model_not_found"),
    "a model with a null": (complete(model="writer\x00"), 404, "model_not_found"),
    "a very long model": (complete(model="w" * 100_000), 404, "model_not_found"),
    "another base": (complete(model="gpt-4"), 404, "model_not_found"),
    "text/plain": (raw(b"{}", {"content-type": "text/plain"}), 415, "unsupported_media_type"),
    "a form": (raw(b"model=a", {"content-type": "application/x-www-form-urlencoded"}), 415, "unsupported_media_type"),
    "gzip": (raw(b"\x1f\x8b", {**JSON, "content-encoding": "gzip"}), 415, "unsupported_media_type"),
    "no content type": (raw(b"{}", {}), 415, "unsupported_media_type"),
    "129 prompts": (complete(prompt=["a"] * 129), 413, "too_large"),
    "129 sequences": (complete(prompt=["a"] * 43, n=3), 413, "too_large"),
    "9 MiB": (complete(prompt="a" * (9 << 20)), 413, "too_large"),
}

CLASSIFY: dict[str, tuple[Ask, int, str]] = {
    "an lm adapter that classifies": (classify(model="writer"), 400, "wrong_task"),
    "the base that classifies": (classify(model="tiny-llama"), 400, "wrong_task"),
    "an lm adapter among others": (classify(model=["judge", "writer"], input=["a", "b"]), 400, "wrong_task"),
    "an unknown adapter among others": (classify(model=["judge", "x"], input=["a", "b"]), 404, "model_not_found"),
    "empty input": (classify(input=""), 400, "invalid_request"),
    "no inputs": (classify(input=[]), 400, "invalid_request"),
    "an empty string among others": (classify(input=["a", ""]), 400, "invalid_request"),
    "an empty second": (classify(input=[["a", ""]]), 400, "invalid_request"),
    "three in a pair": (classify(input=[["a", "b", "c"]]), 400, "invalid_request"),
    "strings and triples": (classify(input=["a", ["b", "c", "d"]]), 400, "invalid_request"),
    "a number as input": (classify(input=[1]), 400, "invalid_request"),
    "half a surrogate": (
        lambda f: f.live.client.post("/v1/classify", content=rb'{"model": "judge", "input": "\udc00"}', headers=JSON),
        400,
        "invalid_request",
    ),
    "fewer models than inputs": (classify(model=["judge"], input=["a", "b"]), 400, "invalid_request"),
    "no models": (classify(model=[], input=["a"]), 400, "invalid_request"),
    "top_k 0": (classify(top_k=0), 400, "invalid_request"),
    "an unknown option": (classify(topk=1), 400, "invalid_request"),
    "a very long input": (classify(input="a" * 1000), 400, "invalid_request"),
    "1,025 inputs": (classify(input=["a"] * 1025), 413, "too_large"),
}

ROUTES: dict[str, tuple[Ask, int, str]] = {
    "an unknown route": (get("/v2/models"), 404, "not_found"),
    "the docs": (get("/docs"), 404, "not_found"),
    "a slash too many": (get("/v1/adapters/"), 404, "not_found"),
    "GET on POST": (get("/v1/completions"), 405, "method_not_allowed"),
    "PATCH": (get("/v1/adapters/writer", "PATCH"), 405, "method_not_allowed"),
    "an unknown model": (get("/v1/models/nobody"), 404, "model_not_found"),
    "a malformed model": (get("/v1/models/a@b@c"), 404, "model_not_found"),
    "an unknown adapter": (get("/v1/adapters/nobody"), 404, "model_not_found"),
    "its versions": (get("/v1/adapters/nobody/versions"), 404, "model_not_found"),
    "its download": (get("/v1/adapters/nobody/download"), 404, "model_not_found"),
    "its delete": (get("/v1/adapters/nobody", "DELETE"), 404, "model_not_found"),
    "a malformed name": (get("/v1/adapters/a%20b"), 404, "model_not_found"),
    "a name with a null": (get("/v1/adapters/a%00b"), 404, "model_not_found"),
    "a name that is not utf-8": (get("/v1/adapters/%ff%fe"), 404, "model_not_found"),
    "an unknown version": (get("/v1/adapters/writer/download?version=9"), 404, "model_not_found"),
    "a malformed version": (get("/v1/adapters/writer/download?version=x"), 404, "model_not_found"),
    "an enormous version": (get(f"/v1/adapters/writer?version={'9' * 50}", "DELETE"), 404, "model_not_found"),
    "an unknown query": (get("/v1/adapters?offset=3"), 400, "invalid_request"),
    "a version where none is taken": (get("/v1/adapters/writer?version=1"), 400, "invalid_request"),
    "a version to pin": (get("/v1/adapters/writer?version=1", "PUT", json={"pinned": True}), 400, "invalid_request"),
    "a form field as a query": (get("/v1/adapters?public=true", "POST", data={"name": "x"}), 400, "invalid_request"),
    "limit 0": (get("/v1/adapters?limit=0"), 400, "invalid_request"),
    "limit 101": (get("/v1/adapters?limit=101"), 400, "invalid_request"),
    "limit x": (get("/v1/adapters?limit=x"), 400, "invalid_request"),
    "after nobody": (get("/v1/adapters?after=nobody"), 404, "model_not_found"),
    "an alias for an unknown adapter": (
        get("/v1/adapters/nobody/aliases/prod", "PUT", json={"version": 1}),
        404,
        "model_not_found",
    ),
    "an alias for an unknown version": (
        get("/v1/adapters/writer/aliases/prod", "PUT", json={"version": 9}),
        404,
        "model_not_found",
    ),
    "an alias for an enormous version": (
        get("/v1/adapters/writer/aliases/prod", "PUT", json={"version": 10**100}),
        404,
        "model_not_found",
    ),
    "an alias that is a number": (
        get("/v1/adapters/writer/aliases/7", "PUT", json={"version": 1}),
        400,
        "invalid_request",
    ),
    "an alias for version 0": (
        get("/v1/adapters/writer/aliases/prod", "PUT", json={"version": 0}),
        400,
        "invalid_request",
    ),
    "an alias without a version": (get("/v1/adapters/writer/aliases/prod", "PUT", json={}), 400, "invalid_request"),
    "an alias by form": (
        get("/v1/adapters/writer/aliases/prod", "PUT", data={"version": "1"}),
        415,
        "unsupported_media_type",
    ),
    "removing an unknown alias": (get("/v1/adapters/writer/aliases/prod", "DELETE"), 404, "model_not_found"),
    "removing latest": (get("/v1/adapters/writer/aliases/latest", "DELETE"), 409, "conflict"),
    "a foreign host": (get("/v1/models", headers={"host": "evil.example"}), 403, "forbidden"),
    "a foreign origin": (get("/v1/models", headers={"origin": "http://evil.example"}), 403, "forbidden"),
    "a page of no origin": (get("/v1/models", headers={"origin": "null"}), 403, "forbidden"),
}

CASES = {
    f"{group}: {name}": case
    for group, cases in {"generation": GENERATION, "classify": CLASSIFY, "routes": ROUTES}.items()
    for name, case in cases.items()
}


@pytest.mark.parametrize("name", CASES)
def test_what_a_client_can_get_wrong(decoder: Fleet, name: str) -> None:
    ask, status, code = CASES[name]
    with decoder.unharmed():
        answer = ask(decoder)
        error = error_of(answer)
        assert (answer.status_code, error["code"]) == (status, code), error


def test_completions_on_an_encoder(encoder: Fleet) -> None:
    for model in ("tiny-roberta", "mood"):
        answer = encoder.live.complete(model)
        assert (answer.status_code, error_of(answer)["code"]) == (400, "wrong_task")


@pytest.mark.parametrize(
    ("ask", "param", "words"),
    [
        (complete(temperature=-1), "temperature", "greater than or equal to 0"),
        (complete(temprature=1), "temprature", "unknown field"),
        (complete(prompt=["a", ""]), "prompt", "prompt 1 is empty"),
        (complete(max_tokens=300), "max_tokens", "context of 256"),
        (complete(logit_bias={"5": 1}), "logit_bias", "not implemented"),
        (complete(model="judge"), "model", "/v1/classify"),
        (chat(messages=[{"role": "user", "content": 3}]), None, "messages.0.content"),
        (classify(model=["judge"], input=["a", "b"]), "model", "model has 1 entries and input 2; they must be as many"),
        (classify(model=["judge", "grader"], input="xy"), "model", "model has 2 entries and input 1"),
        (complete(max_tokens=3, max_completion_tokens=4), "max_tokens", "are the same field; give one of them"),
        (complete(stream_options={}), "stream_options", "stream_options is only for stream: true"),
        (complete(echo=True), "echo", "leave it out (null or false)"),
        (complete(model="writer@9"), None, "'writer' has no version 9 (latest is 1)"),
        (complete(model="writer@production"), None, "'writer' has no alias 'production'; there are latest"),
        (complete(model="nomodel"), None, "no adapter 'nomodel' on this base; GET /v1/models lists"),
    ],
)
def test_messages_say_what_where_and_what_would_be_right(
    decoder: Fleet, ask: Ask, param: str | None, words: str
) -> None:
    error = error_of(ask(decoder))
    assert words in error["message"]
    assert param is None or error["param"] == param


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (classify(input=["a", ""]), "'input' in the body: input 1 has an empty string; give at least one character"),
        (chat(messages=[]), "'messages' in the body: must have at least 1 item, it is empty"),
        (complete(n=True), "'n' in the body: Input should be a valid integer (got true)"),
        (complete(user={}), "'user' in the body: Input should be a valid string (got an object)"),
        (chat(messages=[PICTURE]), "'messages.0.content.0.type' in the body: Input should be 'text' (got 'image_url')"),
        (chat(messages=[SAID | {"content": 3}]), "'messages.0.content' in the body: " + NO_STRING),
        (chat(messages=[SAID | {"str": 3}]), f"unknown field 'messages.0.str' {REMOVE}"),
        (complete(str=3), f"unknown field 'str' {REMOVE}"),
        (complete(**{"": 3}), f"unknown field '' {REMOVE}"),
    ],
)
def test_messages_speak_json(decoder: Fleet, ask: Ask, message: str) -> None:
    assert error_of(ask(decoder))["message"] == message


def test_a_body_without_a_length_is_limited_too(decoder: Fleet) -> None:
    def pieces() -> Any:
        yield b'{"model": "writer", "prompt": "'
        for _ in range(9):
            yield b"a" * (1 << 20)
        yield b'"}'

    with decoder.unharmed():
        answer = decoder.live.client.post("/v1/completions", content=pieces(), headers=JSON)
        assert answer.status_code == 413
        assert error_of(answer)["code"] == "too_large"


def test_an_unexpected_exception_is_logged_and_tells_nothing(
    decoder: Fleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("secret detail")

    with decoder.unharmed():
        with monkeypatch.context() as patch:
            patch.setattr(decoder.live.service.catalog, "describe", broken)
            answer = decoder.live.get("/v1/adapters/writer", headers={"x-request-id": "find-me"})
        error = error_of(answer)
        assert (answer.status_code, error["code"]) == (500, "internal_error")
        assert "secret" not in answer.text
        assert any("find-me" in record.getMessage() and record.exc_info for record in caplog.records)


def test_the_queue_is_limited(tiny_server: Any) -> None:
    """503 with Retry-After, for those beyond it; those within it are answered."""
    fleet = tiny_server(max_queue=1, max_sequences=64, kv_tokens=256)
    live = fleet.live
    body = {"model": "tiny-llama", "prompt": ["a"] * 8, "ignore_eos": True, "max_tokens": 250, "stream": True}
    with live.client.stream("POST", "/v1/completions", json=body) as running:
        lines = running.iter_lines()
        next(lines)
        refused = live.complete("tiny-llama")
        assert (refused.status_code, error_of(refused)["code"]) == (503, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        assert list(lines)[-2:] == ["data: [DONE]", ""]
    live.wait_until_idle()
    assert live.complete("tiny-llama").status_code == 200


def test_a_store_that_is_gone(tiny_server: Any) -> None:
    fleet = tiny_server()
    fleet.add("writer", random_adapter(fleet.base.info, 1))
    fleet.live.service._parts.store.close()
    refused = fleet.live.complete("writer")
    assert (refused.status_code, error_of(refused)["code"]) == (503, "store_unavailable")
    assert int(refused.headers["retry-after"]) >= 1
    assert fleet.live.get("/ready").status_code == 503
    assert fleet.live.get("/health").status_code == 200
    assert fleet.live.complete("tiny-llama").status_code == 200


def test_an_adapter_that_is_damaged_in_the_store(tiny_server: Any) -> None:
    """Only that adapter is unavailable; uploading it again repairs it."""
    import sqlite3

    fleet = tiny_server()
    for seed, name in enumerate(("writer", "poet")):
        fleet.add(name, random_adapter(fleet.base.info, seed))
    with sqlite3.connect(fleet.folder / "store.db") as database:
        (digest,) = database.execute(
            "select sha256 from blobs where length(data) = (select max(length(data)) from blobs) limit 1"
        ).fetchone()
        database.execute("update blobs set data = zeroblob(length(data)) where sha256 = ?", (digest,))
    database.close()
    answers = {name: fleet.live.complete(name) for name in ("writer", "poet")}
    codes = sorted(answer.status_code for answer in answers.values())
    assert codes == [200, 503]
    (broken,) = (name for name, answer in answers.items() if answer.status_code == 503)
    assert error_of(answers[broken])["code"] == "adapter_unavailable"
    assert "retry-after" in answers[broken].headers
    again: AdapterFiles = adapter_files(fleet.adapters[broken], fleet.base.info)
    assert fleet.live.upload(broken, again).status_code == 200
    assert fleet.live.complete(broken).status_code == 200

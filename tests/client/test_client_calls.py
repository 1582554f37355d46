"""What each call sends and what it makes of the answer."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import cdvft_client as c
import httpx
import pytest

from tests.client.harness import COMPLETION, DIGEST, HEADERS, Script, adapter_body, error_body

Connect = Callable[..., Any]
USED = c.AdapterUsed("reviews", 2, DIGEST, "fft", "req-1")


def ok(body: Any, status: int = 200, **headers: str) -> Script:
    return Script(httpx.Response(status, json=body, headers={**HEADERS, **headers}))


def line(script: Script) -> str:
    (request,) = script.requests
    return f"{request.method} {request.url.raw_path.decode()}"


def test_complete(connect: Connect) -> None:
    script = ok(COMPLETION)
    fields = {"max_tokens": 8, "temperature": 0, "seed": None, "stop": ["\n"], "stop_token_ids": (2,), "n": 1}
    answer = connect(transport=script.transport).complete("reviews@prod", "Once", mode="merged", **fields)
    assert line(script) == "POST /v1/completions"
    assert script.requests[0].headers["x-adapter-mode"] == "merged"
    assert script.sent == {
        "model": "reviews@prod",
        "prompt": "Once",
        "max_tokens": 8,
        "temperature": 0,
        "stop": ["\n"],
        "stop_token_ids": [2],
        "n": 1,
    }
    assert answer.choices == (c.Choice(0, " a cat", "stop"),)
    assert (answer.text, answer.id, answer.usage) == (" a cat", "cmpl-1", c.Usage(3, 2, 5))
    assert answer.adapter == USED
    assert answer.raw == COMPLETION


@pytest.mark.parametrize("prompt", ["Once", ["Once", "Twice"], [1, 2, 3], [[1, 2], [3]]])
def test_every_kind_of_prompt(connect: Connect, prompt: Any) -> None:
    script = ok(COMPLETION)
    connect(transport=script.transport).complete("reviews", prompt)
    assert script.sent == {"model": "reviews", "prompt": prompt}
    assert "x-adapter-mode" not in script.requests[0].headers


def test_chat(connect: Connect) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": "Hello."}, "finish_reason": "length"}
    script = ok({**COMPLETION, "choices": [choice]})
    messages = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    answer = connect(transport=script.transport).chat("reviews", messages, max_completion_tokens=4, user="me")
    assert line(script) == "POST /v1/chat/completions"
    assert script.sent == {"model": "reviews", "messages": messages, "max_completion_tokens": 4, "user": "me"}
    assert answer.choices == (c.Choice(0, "Hello.", "length"),)


@pytest.mark.parametrize(
    ("call", "args", "wrong", "hint"),
    [
        ("complete", ("x", "y"), "max_token", "did you mean 'max_tokens'"),
        ("complete", ("x", "y"), "stream", r"complete_stream\(\)"),
        ("complete", ("x", "y"), "include_usage", ""),
        ("chat", ("x", []), "logprobs", ""),
        ("complete_stream", ("x", "y"), "stream_options", "include_usage="),
        ("chat_stream", ("x", []), "tempature", "did you mean 'temperature'"),
        ("classify", ("x", "y"), "topk", ""),
    ],
)
def test_an_unknown_keyword_is_a_type_error(
    connect: Connect, call: str, args: tuple[Any, ...], wrong: str, hint: str
) -> None:
    script = Script()
    with pytest.raises(TypeError, match=rf"{call}\(\) got an unexpected keyword argument '{wrong}'.*{hint}"):
        getattr(connect(transport=script.transport), call)(*args, **{wrong: 1})
    assert script.requests == []


def test_classify(connect: Connect) -> None:
    scores = [{"label": "good", "score": 0.98}, {"label": "bad", "score": 0.02}]
    row = {"index": 0, "label": "good", "score": 0.98, "scores": scores}
    usage = {"prompt_tokens": 4, "total_tokens": 4}
    script = ok({"object": "list", "model": "reviews", "data": [row], "usage": usage})
    answer = connect(transport=script.transport).classify("reviews", "Great!", top_k=2, raw_scores=False, mode="fft")
    assert line(script) == "POST /v1/classify"
    assert script.sent == {"model": "reviews", "input": "Great!", "top_k": 2, "raw_scores": False}
    assert script.requests[0].headers["x-adapter-mode"] == "fft"
    expected = c.ClassifiedRow(0, "good", 0.98, (c.LabelScore("good", 0.98), c.LabelScore("bad", 0.02)), USED)
    assert list(answer) == [answer[0]] == [expected]
    assert (answer.labels, answer.scores, len(answer)) == (("good",), (0.98,), 1)
    assert (answer.model, answer.usage, answer.adapter) == ("reviews", c.Usage(4, 0, 4), USED)


def test_classify_with_several_adapters(connect: Connect) -> None:
    rows = [
        {"index": 0, "label": "good", "score": 0.9, "scores": [], "adapter": "a", "digest": DIGEST, "mode": "fft"},
        {"index": 1, "score": 3.7, "adapter": "b", "digest": DIGEST, "mode": "merged"},
    ]
    body = {"object": "list", "model": None, "data": rows, "usage": {"prompt_tokens": 9, "total_tokens": 9}}
    script = Script(httpx.Response(200, json=body, headers={"x-request-id": "req-1"}))
    pairs = [("first", "second"), ("third", "fourth")]
    answer = connect(transport=script.transport).classify(["a", "b"], pairs, truncate=True)
    assert script.sent == {"model": ["a", "b"], "input": [list(pair) for pair in pairs], "truncate": True}
    assert answer.model is None
    assert answer.adapter == c.AdapterUsed(None, None, None, None, "req-1")
    assert [row.adapter.name for row in answer] == ["a", "b"]
    assert answer[1] == c.ClassifiedRow(1, None, 3.7, (), c.AdapterUsed("b", None, DIGEST, "merged", "req-1"))


def test_model(connect: Connect) -> None:
    script = ok({"id": "acme/reviews@2", "object": "model", "created": 1, "owned_by": "acme", "parent": "base"})
    found = connect(transport=script.transport).model("acme/reviews@2")
    assert line(script) == "GET /v1/models/acme/reviews@2"
    assert (found.id, found.owned_by, found.parent, found.root) == ("acme/reviews@2", "acme", "base", None)


def test_adapter(connect: Connect) -> None:
    described = {**adapter_body(), "residency": "device", "hits": 7, "last_used": 1700000001.5, "description": "d"}
    described["pinned"] = True
    script = ok(described)
    found = connect(transport=script.transport).adapter("reviews")
    assert line(script) == "GET /v1/adapters/reviews"
    assert (found.name, found.version, found.labels, found.sites) == (
        "reviews",
        2,
        ("bad", "good"),
        ("layers.0.self_attn.q_proj",),
    )
    assert (found.residency, found.hits, found.last_used, found.description) == ("device", 7, 1700000001.5, "d")
    assert found.pinned
    assert (found.self_test_error, found.ignored_files, found.created) == (1e-6, ("README.md",), None)
    assert (found.aliases, found.request_id, found.raw) == ({"latest": 2, "prod": 1}, "req-1", described)
    assert hash(found) == hash(found)


def test_aliases(connect: Connect) -> None:
    script = ok(adapter_body())
    assert connect(transport=script.transport).set_alias("reviews", "prod", 1).aliases["prod"] == 1
    assert (line(script), script.sent) == ("PUT /v1/adapters/reviews/aliases/prod", {"version": 1})
    script = ok(adapter_body())
    assert connect(transport=script.transport).delete_alias("reviews", "prod").name == "reviews"
    assert line(script) == "DELETE /v1/adapters/reviews/aliases/prod"


@pytest.mark.parametrize("pinned", [True, False])
def test_pins(connect: Connect, pinned: bool) -> None:
    script = ok({**adapter_body(), "pinned": pinned})
    client = connect(transport=script.transport)
    assert (client.pin if pinned else client.unpin)("reviews").pinned is pinned
    assert (line(script), script.sent) == ("PUT /v1/adapters/reviews", {"pinned": pinned})


def test_usage(connect: Connect, tmp_path: Any) -> None:
    entry = {
        "id": "reviews", "object": "usage", "start": None, "end": None, "tenant": "default", "adapter": "reviews",
        "version": None, "digest": None, "requests": 3, "failed": 1, "cancelled": 0, "prompt_tokens": 7,
        "completion_tokens": 5, "total_tokens": 12, "seconds": 0.5,
    }  # fmt: skip
    page = {"object": "list", "data": [entry], "has_more": True, "last_id": "reviews"}
    last = {**page, "has_more": False}
    script = Script(*(httpx.Response(200, json=body, headers=HEADERS) for body in (page, last)))
    fields = {"start": datetime(2026, 11, 29, tzinfo=UTC), "end": 1800000000, "group_by": ["day", "adapter"]}
    found = list(connect(transport=script.transport).usage(limit=1, **fields))
    assert len(found) == 2
    assert found[0] == found[1]
    assert (found[0].adapter, found[0].requests, found[0].total_tokens, found[0].raw) == ("reviews", 3, 12, entry)
    query = {"start": "2026-11-29T00:00:00+00:00", "end": "1800000000", "group_by": "day,adapter", "limit": "1"}
    assert [dict(request.url.params) for request in script.requests] == [query, {**query, "after": "reviews"}]

    script = Script(httpx.Response(200, content=b"start,end"))
    target = tmp_path / "usage.csv"
    assert connect(transport=script.transport).usage_csv(adapter="reviews", to=target) == b"start,end"
    assert line(script) == "GET /v1/usage?adapter=reviews&format=csv"
    assert target.read_bytes() == b"start,end"
    with pytest.raises(TypeError, match=r"usage_csv\(\) got an unexpected .*'adaptr'; did you mean 'adapter'"):
        connect().usage_csv(adaptr="reviews")


@pytest.mark.parametrize(("version", "query"), [(None, ""), (3, "?version=3")])
def test_delete_and_download(connect: Connect, version: int | None, query: str, tmp_path: Any) -> None:
    script = ok({"id": "reviews", "object": "adapter.deleted", "deleted": True, "bytes_freed": 9000})
    gone = connect(transport=script.transport).delete("reviews", version)
    assert line(script) == f"DELETE /v1/adapters/reviews{query}"
    assert (gone.id, gone.deleted, gone.bytes_freed, gone.request_id) == ("reviews", True, 9000, "req-1")

    script = Script(httpx.Response(200, content=b"PK zip"))
    target = tmp_path / "reviews.zip"
    target.write_bytes(b"what was there before")
    assert connect(transport=script.transport).download("reviews", version, to=target) == b"PK zip"
    assert line(script) == f"GET /v1/adapters/reviews/download{query}"
    assert [path.name for path in tmp_path.iterdir()] == ["reviews.zip"]
    assert target.read_bytes() == b"PK zip"


def test_probes(connect: Connect) -> None:
    script = Script(httpx.Response(200, text="ok"), httpx.Response(200), httpx.Response(503, json=error_body("x")))
    client = connect(transport=script.transport)
    assert (client.health(), client.ready(), client.ready()) == (True, True, False)
    assert [request.url.path for request in script.requests] == ["/health", "/ready", "/ready"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "a?version=1", "a#b", "-a", "a" * 97, "a\n", "é"])
def test_a_name_that_would_change_the_path_is_refused(connect: Connect, name: str) -> None:
    script = Script()
    client = connect(transport=script.transport)
    for call, args in [
        ("adapter", (name,)),
        ("delete", (name,)),
        ("download", (name,)),
        ("set_alias", ("reviews", name, 1)),
        ("delete_alias", ("reviews", name)),
        ("delete_alias", (name, "prod")),
    ]:
        with pytest.raises(ValueError, match="is not an a"):
            getattr(client, call)(*args)
    with pytest.raises(ValueError, match="is not an adapter name"):
        list(client.versions(name))
    assert script.requests == []


@pytest.mark.parametrize("name", ["", "..", "a/../b", "/a", "a//b"])
def test_a_model_id_that_would_change_the_path_is_refused(connect: Connect, name: str) -> None:
    with pytest.raises(ValueError, match="is not a model id"):
        connect(transport=Script().transport).model(name)


def test_a_model_id_is_quoted(connect: Connect) -> None:
    script = Script(httpx.Response(404, json=error_body("model_not_found")))
    with pytest.raises(c.NotFoundError):
        connect(transport=script.transport).model("a?limit=1#b c")
    assert line(script) == "GET /v1/models/a%3Flimit%3D1%23b%20c"


def page(*items: dict[str, Any], more: bool) -> httpx.Response:
    body = {"object": "list", "data": list(items), "has_more": more, "last_id": items[-1]["id"] if items else None}
    return httpx.Response(200, json=body)


@pytest.mark.parametrize("kind", ["adapters", "versions", "models"])
def test_lists_go_on_to_the_last_page(connect: Connect, kind: str) -> None:
    script = Script(
        page(adapter_body("e"), adapter_body("d"), more=True),
        page(adapter_body("c"), adapter_body("b"), more=True),
        page(adapter_body("a"), more=False),
    )
    client = connect(transport=script.transport)
    found = {
        "adapters": lambda: client.adapters(limit=2, after="f"),
        "versions": lambda: client.versions("reviews", limit=2),
        "models": client.models,
    }[kind]()
    assert script.requests == []
    assert next(found).id == "e"
    assert len(script.requests) == 1
    assert [item.id for item in found] == ["d", "c", "b", "a"]
    limit = {} if kind == "models" else {"limit": "2"}
    first = {"after": "f"} if kind == "adapters" else {}
    assert [dict(request.url.params) for request in script.requests] == [
        {**limit, **first},
        {**limit, "after": "d"},
        {**limit, "after": "b"},
    ]


def test_an_empty_list(connect: Connect) -> None:
    assert list(connect(transport=Script(page(more=False)).transport).adapters()) == []


def test_a_page_that_promises_more_without_saying_where(connect: Connect) -> None:
    with pytest.raises(c.APIResponseError, match="has_more without"):
        list(connect(transport=Script(page(more=True)).transport).adapters())


def test_numbers_that_json_does_not_have_are_refused(connect: Connect) -> None:
    script = Script()
    with pytest.raises(ValueError, match="not JSON compliant"):
        connect(transport=script.transport).complete("x", "y", temperature=float("nan"))
    assert json.dumps(script.requests) == "[]"

"""Access lines, and what no log line may have: prompts, answers, labels, templates, keys, query strings."""

import asyncio
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from cdvft.checkpoint import adapter_files
from cdvft_server.logs import Format, logging_to

from tests.server.http.harness import Fleet, wait_until
from tests.tiny import random_adapter

SECRET = "x7Qsecret9"


class Lines:
    """What was logged; a line comes a moment after its answer."""

    def __init__(self, stream: io.StringIO) -> None:
        self._stream = stream

    @property
    def text(self) -> str:
        return self._stream.getvalue()

    def of(self, request_id: str) -> dict[str, Any]:
        """The access line of a request."""
        wait_until(lambda: any(entry.get("request_id") == request_id for entry in self.entries()))
        (found,) = (entry for entry in self.entries() if entry.get("request_id") == request_id)
        return found

    def entries(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines(keepends=True) if line.endswith("\n")]


@contextmanager
def logged(form: Format = "json") -> Iterator[Lines]:
    stream = io.StringIO()
    with logging_to(stream, form, "info"):
        yield Lines(stream)


def test_each_request_has_a_line(decoder: Fleet) -> None:
    live = decoder.live
    with logged() as lines:
        answer = live.post(
            "/v1/completions?", {"model": "writer", "prompt": "a", "max_tokens": 2}, headers={"x-request-id": "one"}
        )
        usage = answer.json()["usage"]
        live.post(
            "/v1/completions", {"model": "writer", "prompt": "a", "stream": True}, headers={"x-request-id": "two"}
        )
        live.post(
            "/v1/classify", {"model": ["judge", "grader"], "input": ["a", "b"]}, headers={"x-request-id": "three"}
        )
        live.get("/v1/models/nobody", headers={"x-request-id": "four"})
        live.client.request("BREW", "/teapot", headers={"x-request-id": "five"})
        live.get("/health", headers={"x-request-id": "six"})
        one = lines.of("one")
        assert one.pop("time")
        assert one.pop("milliseconds") > 0
        assert one == {
            "level": "info", "logger": "cdvft_server.accesslog", "message": "POST /v1/completions 200",
            "request_id": "one", "tenant": "default", "method": "POST", "route": "/v1/completions", "status": 200,
            "adapter": "writer", "digest": decoder.adapters["writer"].digest, "mode": "fft",
            "prompt_tokens": usage["prompt_tokens"], "completion_tokens": usage["completion_tokens"],
            "client": "127.0.0.1",
        }  # fmt: skip
        assert lines.of("two")["completion_tokens"] > 0
        three = lines.of("three")
        assert (three["adapters"], three.get("adapter"), three["completion_tokens"]) == (2, None, 0)
        four = lines.of("four")
        assert (four["status"], four["route"], four["tenant"]) == (404, "/v1/models/{id:path}", "default")
        five = lines.of("five")
        assert (five["status"], five["method"], five["route"]) == (404, "other", "(none)")
        assert "six" not in lines.text


def everything_with_the_secret(fleet: Fleet, name: str) -> list[int]:
    """Requests to every route with the secret in each place where it can be; their statuses."""
    live, info = fleet.live, fleet.base.info
    as_json = {"content-type": "application/json"}
    template = "{# " + SECRET + " #}{% for m in messages %}{{ m.content }}{% endfor %}"
    bad = "{# " + SECRET + " #}{{ raise_exception('" + SECRET + "') }}"
    good = adapter_files(random_adapter(info, 11, template=template), info)
    labelled = adapter_files(random_adapter(info, 12, "classification", [f"{SECRET}-yes", f"{SECRET}-no"]), info)
    raising = adapter_files(random_adapter(info, 13, template=bad), info)
    chat = [{"role": "user", "content": SECRET}]
    answers = [
        live.upload(f"good-{name}", good, description=SECRET),
        live.upload(f"labelled-{name}", labelled),
        live.upload(f"raising-{name}", raising),
        live.upload(f"bad-{name}", labelled, labels=json.dumps([SECRET])),
        live.upload(f"bad-{name}", labelled, **{SECRET: SECRET}),
        live.upload(f"bad {SECRET}", labelled),
        live.complete("writer", SECRET, max_tokens=2),
        live.complete("writer", SECRET, stop=[SECRET], user=SECRET, metadata={SECRET: SECRET}),
        live.complete("writer", SECRET, max_tokens=10**6),
        live.complete("writer", SECRET, temperature=SECRET),
        live.complete("writer", SECRET, **{SECRET: 1}),
        live.complete("writer", [SECRET, 1]),
        live.complete(SECRET, SECRET),
        live.complete(f"writer@{SECRET}", SECRET),
        live.complete("writer", SECRET, stream=True),
        live.classify(f"labelled-{name}", SECRET),
        live.classify(f"labelled-{name}", [SECRET, [SECRET, SECRET]]),
        live.classify("judge", SECRET * 1000),
        live.classify("writer", SECRET),
        live.classify(["judge", SECRET], [SECRET, SECRET]),
        live.post("/v1/chat/completions", {"model": f"good-{name}", "messages": chat, "max_tokens": 2}),
        live.post("/v1/chat/completions", {"model": f"raising-{name}", "messages": chat}),
        live.post("/v1/chat/completions", {"model": "writer", "messages": [{"role": SECRET}]}),
        live.client.post("/v1/completions", content=f'{{"prompt": "{SECRET}', headers=as_json),
        live.client.post("/v1/completions", content=SECRET, headers={"content-type": SECRET}),
        live.client.post("/v1/classify", content=SECRET.encode("utf-16"), headers=as_json),
        live.client.put(f"/v1/adapters/{SECRET}", json={"pinned": SECRET}),
        live.client.put(f"/v1/adapters/writer/aliases/{SECRET}", json={"version": 10**30}),
        live.client.delete(f"/v1/adapters/{SECRET}"),
        live.client.delete(f"/v1/adapters/writer/aliases/{SECRET}"),
        live.client.request("BREW", f"/{SECRET}", headers={SECRET: SECRET}),
    ]
    for path in ("/", "/health", "/ready", "/metrics", "/v1/models", "/v1/adapters", "/v1/usage", f"/{SECRET}"):
        headers = {"authorization": f"Bearer {SECRET}", "x-adapter-mode": SECRET, "x-request-id": f"no id {SECRET}"}
        answers.append(live.get(f"{path}?after={SECRET}&key={SECRET}", headers=headers))
    for path in ("/v1/models/", "/v1/adapters/", f"/v1/adapters/writer/download?version={SECRET}&x="):
        answers.append(live.get(f"{path}{SECRET}"))
    answers.append(live.get("/health", headers={"host": SECRET}))
    return [answer.status_code for answer in answers]


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_line_says_what_a_request_said(decoder: Fleet, form: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    live = decoder.live
    parts = live.service._parts

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(f"a fault that quotes {SECRET}")

    async def failing() -> None:
        broken()

    async def forgotten() -> None:
        """A task whose exception nobody asks for."""
        task = asyncio.create_task(failing())
        await asyncio.wait([task])

    with logged(form) as lines:
        statuses = everything_with_the_secret(decoder, form)
        assert {200, 201, 400, 403, 404, 415, 422} <= set(statuses)
        assert not any(status >= 500 for status in statuses)
        faults = 0
        for owner, attribute in (
            (parts.engine._core.runner, "run"),
            (parts.engine, "submit"),
            (parts.store, "resolve"),
            (live.service.generator._encoding, "prompts"),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(owner, attribute, broken)
                parts.store.record_step(f"a write, so that names are read again: {attribute} {form}")
                faults += live.complete("writer", SECRET).status_code == 500
                faults += "internal_error" in live.complete("writer", SECRET, stream=True).text
        assert faults == 8
        asyncio.run_coroutine_threadsafe(forgotten(), live.loop).result(60)
        wait_until(lambda: live.complete("writer") and "never retrieved" in lines.text)
    assert SECRET not in lines.text
    assert len(lines.text.splitlines()) > len(statuses) + faults

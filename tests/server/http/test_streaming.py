"""Server-sent events: the same text as whole answers, and an end that always comes."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from tests.server.http.harness import Fleet, Live, error_of, events_of, wait_until

CHAT = [{"role": "user", "content": "the cat"}]


def stream(live: Live, path: str, body: dict[str, Any]) -> list[Any]:
    answer = live.post(path, {**body, "stream": True})
    assert answer.status_code == 200, answer.text
    events = events_of(answer)
    assert events[-1] == "[DONE]"
    return events[:-1]


def joined(chunks: list[Any], count: int, text: str) -> tuple[list[str], list[list[str]]]:
    """Each choice's text, and its finish reasons."""
    texts, reasons = [""] * count, [[] for _ in range(count)]
    for chunk in chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice[text] if text == "text" else choice["delta"].get("content", "")
            if choice["finish_reason"]:
                reasons[choice["index"]].append(choice["finish_reason"])
    return texts, reasons


@pytest.mark.parametrize("stop", [None, ["zzz"], "found"])
def test_a_stream_says_what_the_whole_answer_says(decoder: Fleet, stop: Any) -> None:
    body: dict[str, Any] = {"model": "poet", "prompt": ["the cat", "a dog"], "n": 2, "seed": 5, "max_tokens": 40}
    if stop == "found":
        stop = decoder.live.post("/v1/completions", body).json()["choices"][0]["text"][10:12]
    body["stop"] = stop
    whole = decoder.live.post("/v1/completions", body).json()
    chunks = stream(decoder.live, "/v1/completions", body)
    texts, reasons = joined(chunks, 4, "text")
    assert texts == [choice["text"] for choice in whole["choices"]]
    assert reasons == [[choice["finish_reason"]] for choice in whole["choices"]]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks)


def test_a_chat_stream(decoder: Fleet) -> None:
    body = {"model": "poet", "messages": CHAT, "n": 2, "seed": 5, "max_tokens": 30}
    whole = decoder.live.post("/v1/chat/completions", body).json()
    chunks = stream(decoder.live, "/v1/chat/completions", {**body, "stream_options": {"include_usage": True}})
    texts, reasons = joined(chunks, 2, "delta")
    assert texts == [choice["message"]["content"] for choice in whole["choices"]]
    assert reasons == [["length"], ["length"]]
    assert [chunk["choices"][0]["delta"] for chunk in chunks[:2]] == [{"role": "assistant", "content": ""}] * 2
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


def test_no_event_ends_within_a_character(decoder: Fleet) -> None:
    """The tiny base speaks bytes: many of its characters take several tokens."""
    chunks = stream(decoder.live, "/v1/completions", {"model": "poet", "prompt": "a", "max_tokens": 200, "seed": 1})
    for chunk in chunks:
        json.dumps(chunk, ensure_ascii=False).encode("utf-8")


def test_headers_come_before_the_events(decoder: Fleet) -> None:
    body = {"model": "writer", "prompt": "a", "stream": True, "ignore_eos": True, "max_tokens": 200}
    with decoder.live.client.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.headers["x-adapter"] == "writer"
        assert answer.headers["x-adapter-mode"] == "fft"
        assert answer.headers["x-adapter-digest"] == decoder.adapters["writer"].digest


@pytest.mark.parametrize(
    ("change", "status"), [({"model": "nobody"}, 404), ({"temperature": -1}, 400), ({"prompt": ""}, 400)]
)
def test_what_is_wrong_before_the_first_event_is_a_status(decoder: Fleet, change: dict[str, Any], status: int) -> None:
    answer = decoder.live.post("/v1/completions", {"model": "writer", "prompt": "a", "stream": True, **change})
    assert answer.status_code == status
    error_of(answer)


def test_a_client_that_goes_away_ends_its_stream(decoder: Fleet) -> None:
    body = {"model": "writer", "prompt": ["a", "b"], "n": 4, "stream": True, "ignore_eos": True, "max_tokens": 250}
    with decoder.unharmed():
        with decoder.live.client.stream("POST", "/v1/completions", json=body) as answer:
            next(answer.iter_lines())
            assert decoder.live.gauge("cdvft_requests_running") > 0
        decoder.live.wait_until_idle()


def test_a_client_that_goes_away_ends_its_whole_answer(decoder: Fleet) -> None:
    """Nothing was sent yet: only the closed connection tells."""
    body = {"model": "writer", "prompt": ["a", "b"] * 8, "n": 8, "ignore_eos": True, "max_tokens": 250}
    with decoder.unharmed():
        generated = decoder.live.gauge("cdvft_generated_tokens_total")

        async def leave() -> None:
            async with httpx.AsyncClient(base_url=decoder.live.url) as client:
                task = asyncio.create_task(client.post("/v1/completions", json=body))
                running = "cdvft_requests_running"
                await asyncio.to_thread(wait_until, lambda: decoder.live.gauge(running) > 0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

        asyncio.run(leave())
        decoder.live.wait_until_idle()
        assert decoder.live.gauge("cdvft_generated_tokens_total") - generated < 128 * 250


def test_an_engine_fault_within_a_stream_is_an_event(decoder: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The status was sent: the stream itself says what happened, and still ends with [DONE]."""
    engine = decoder.live.service._parts.engine
    from cdvft_server.engine.batch import Failed, Token

    submit = engine.submit

    def faulty(requests: Any) -> None:
        for request in requests:
            deliver = request.deliver

            def stop_early(event: Any, deliver: Any = deliver) -> None:
                if isinstance(event, Token) and event.position == 3:
                    deliver(Failed(event.request_id, RuntimeError("secret detail")))
                else:
                    deliver(event)

            object.__setattr__(request, "deliver", stop_early)
        submit(requests)

    with decoder.unharmed():
        with monkeypatch.context() as patch:
            patch.setattr(engine, "submit", faulty)
            body = {"model": "writer", "prompt": "a", "stream": True, "ignore_eos": True}
            events = events_of(decoder.live.post("/v1/completions", body))
        assert events[-1] == "[DONE]"
        assert events[-2]["error"]["code"] == "internal_error"
        assert "secret" not in str(events)

"""Streams over real sockets: pieces, ends, breaks, and closing as cancellation."""

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import cdvft_client as c
import httpx
import pytest

from tests.client.harness import COMPLETION, DIGEST, Connection, LiveServer, Script, events, text_chunk

Connect = Callable[..., Any]
DONE = b"data: [DONE]\n\n"


def test_chunks_come_one_by_one_with_the_adapter(connect: Connect) -> None:
    def answer(connection: Connection) -> None:
        whole = b": hello\n\n" + b"".join(events(text_chunk(" a"), text_chunk(" cât", "stop"))) + DONE
        connection.stream(*(whole[i : i + 7] for i in range(0, len(whole), 7)))
        connection.end()

    with LiveServer(answer) as server, connect(server.url).complete_stream("reviews", "Once") as stream:
        assert stream.adapter == c.AdapterUsed("reviews", 2, DIGEST, "fft", "req-1")
        chunks = list(stream)
        assert [chunk.text for chunk in chunks] == [" a", " cât"]
        assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, "stop"]
        assert chunks[0].adapter == stream.adapter
        assert list(stream) == []


def test_chat_deltas_and_usage(connect: Connect) -> None:
    def chunk(**fields: Any) -> dict[str, Any]:
        return {"id": "chatcmpl-1", "created": 1700000000, "model": "reviews", **fields}

    sent = events(
        chunk(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]),
        chunk(choices=[{"index": 1, "delta": {"content": "Hi"}, "finish_reason": None}], usage=None),
        chunk(choices=[{"index": 1, "delta": {}, "finish_reason": "length"}]),
        chunk(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}),
        "[DONE]",
    )
    script = Script(httpx.Response(200, content=b"".join(sent)))
    client = connect(transport=script.transport)
    chunks = list(client.chat_stream("reviews", [{"role": "user", "content": "Hello"}], include_usage=True))
    assert [chunk.text for chunk in chunks] == ["", "Hi", "", ""]
    assert [[choice.index for choice in chunk.choices] for chunk in chunks] == [[0], [1], [1], []]
    assert chunks[3].usage == c.Usage(3, 1, 4)
    assert script.sent["stream"] is True
    assert script.sent["stream_options"] == {"include_usage": True}


def test_a_chunk_is_given_before_the_next_one_is_made(connect: Connect) -> None:
    answered: list[str] = []

    def answer(connection: Connection) -> None:
        connection.stream(*events(text_chunk(" a")))
        connection.wait_gone()
        answered.append("gone")

    with LiveServer(answer) as server:
        stream = connect(server.url).complete_stream("reviews", "Once")
        assert next(stream).text == " a"
        assert answered == []
        stream.close()
        assert server.gone.wait(10)
        assert list(stream) == []
        stream.close()


def test_leaving_with_closes_the_connection_also_upon_an_error(connect: Connect) -> None:
    def answer(connection: Connection) -> None:
        connection.stream()
        connection.wait_gone()

    with LiveServer(answer) as server:
        with pytest.raises(KeyError), connect(server.url).complete_stream("reviews", "Once"):
            raise KeyError
        assert server.gone.wait(10)


def test_a_dropped_stream_closes_its_connection_at_once() -> None:
    def answer(connection: Connection) -> None:
        connection.stream(*events(text_chunk(" a")))
        connection.wait_gone()

    gc.disable()
    try:
        with LiveServer(answer) as server, c.Client(server.url) as client:
            for _ in client.complete_stream("reviews", "Once"):
                break
            assert server.gone.wait(10)
    finally:
        gc.enable()


def test_cancelling_the_task_closes_the_connection() -> None:
    def answer(connection: Connection) -> None:
        connection.stream(*events(text_chunk(" a")))
        connection.wait_gone()

    async def consume(url: str) -> None:
        async with c.AsyncClient(url) as client, client.complete_stream("reviews", "Once") as stream:
            async for _ in stream:
                task = asyncio.current_task()
                assert task is not None
                asyncio.get_running_loop().call_soon(task.cancel)

    with LiveServer(answer) as server:
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(consume(server.url))
        assert server.gone.wait(10)


def test_closing_from_another_task_ends_the_iteration() -> None:
    def answer(connection: Connection) -> None:
        connection.stream(*events(text_chunk(" a")))
        connection.wait_gone()

    async def consume(url: str) -> list[str]:
        async with c.AsyncClient(url) as client, client.complete_stream("reviews", "Once") as stream:
            texts = []
            closing = None
            async for chunk in stream:
                texts.append(chunk.text)
                closing = asyncio.create_task(stream.aclose())
            assert closing is not None
            await closing
            return texts

    with LiveServer(answer) as server:
        assert asyncio.run(consume(server.url)) == [" a"]
        assert server.gone.wait(10)


def test_many_streams_at_once() -> None:
    def answer(connection: Connection) -> None:
        connection.stream(*events(*(text_chunk(f" {i}") for i in range(20))), DONE)
        connection.end()

    async def consume(client: c.AsyncClient) -> str:
        return "".join([chunk.text async for chunk in client.complete_stream("reviews", "Once")])

    async def all_of_them(url: str) -> list[str]:
        async with c.AsyncClient(url) as client:
            return list(await asyncio.gather(*(consume(client) for _ in range(16))))

    with LiveServer(*[answer] * 16) as server:
        assert asyncio.run(all_of_them(server.url)) == ["".join(f" {i}" for i in range(20))] * 16


@pytest.mark.parametrize("properly", [True, False])
def test_an_end_without_done_is_an_error(connect: Connect, properly: bool) -> None:
    def answer(connection: Connection) -> None:
        connection.stream(*events(text_chunk(" a", "stop")))
        if properly:
            connection.end()

    with LiveServer(answer) as server:
        stream = connect(server.url).complete_stream("reviews", "Once")
        assert next(stream).text == " a"
        with pytest.raises(c.APIConnectionError, match="not whole" if properly else "broke"):
            next(stream)


def test_done_ends_it_whatever_the_server_does_then(connect: Connect) -> None:
    def answer(connection: Connection) -> None:
        connection.stream(*events(text_chunk(" a")), DONE, *events(text_chunk(" never")))
        connection.wait_gone()

    with LiveServer(answer) as server:
        assert [chunk.text for chunk in connect(server.url).complete_stream("reviews", "Once")] == [" a"]
        assert server.gone.wait(10)


def test_chunks_before_an_error_event_are_given(connect: Connect) -> None:
    content = b"".join(events(text_chunk(" a"), {"error": {"message": "worker lost", "code": "internal_error"}}))
    stream = connect(transport=Script(httpx.Response(200, content=content)).transport).complete_stream("x", "Once")
    assert next(stream).text == " a"
    with pytest.raises(c.InternalServerError, match="worker lost"):
        next(stream)


def test_silence_is_a_timeout(connect: Connect) -> None:
    def answer(connection: Connection) -> None:
        connection.stream(*events(text_chunk(" a")))
        connection.wait_gone()

    with LiveServer(answer) as server:
        stream = connect(server.url, timeout=0.2).complete_stream("reviews", "Once")
        assert next(stream).text == " a"
        with pytest.raises(c.APITimeoutError):
            next(stream)
        assert server.gone.wait(10)


def test_an_async_stream_sends_nothing_before_it_is_used() -> None:
    script = Script(httpx.Response(200, json=COMPLETION))

    async def unused() -> None:
        async with c.AsyncClient(transport=script.transport) as client:
            stream = client.complete_stream("reviews", "Once")
            with pytest.raises(RuntimeError, match="not open yet"):
                _ = stream.adapter
            await stream.aclose()
            assert [chunk async for chunk in stream] == []

    asyncio.run(unused())
    assert script.requests == []

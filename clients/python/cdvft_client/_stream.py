"""Streams of chunks, synchronous and asynchronous, over one decoder."""

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import TracebackType
from typing import Self

import httpx

from . import _parse
from ._errors import connection_error, stream_error
from ._exceptions import APIConnectionError, APIResponseError
from ._sse import EventDecoder
from ._types import AdapterUsed, Chunk

DONE = "[DONE]"


class ChunkDecoder:
    """Chunks from the bytes of one answer.

    `done`: the server said that all has come. `closed`: the caller wants no more.
    """

    def __init__(self, response: httpx.Response, server: str) -> None:
        self.adapter = _parse.adapter_used(response.headers)
        self.done = False
        self.closed = False
        self._server = server
        self._events = EventDecoder()

    def feed(self, piece: bytes) -> Iterator[Chunk]:
        """Raises the typed error of an error event, and APIResponseError for data that is no chunk."""
        for data in self._events.feed(piece):
            if data.strip() == DONE:
                self.done = True
                return
            yield self._chunk(data)

    def _chunk(self, data: str) -> Chunk:
        try:
            raw = json.loads(data)
            if isinstance(raw, dict) and raw.get("error"):
                raise stream_error(raw, self.adapter.request_id)
            return _parse.chunk(raw, self.adapter)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise APIResponseError(f"an event of the stream is not a chunk: {data[:200]!r}") from error

    def broken(self, error: httpx.RequestError | None = None) -> APIConnectionError:
        """What to raise when the bytes end, or break with `error`, before the server said that all has come."""
        if error is not None:
            return connection_error(error, self._server)
        return APIConnectionError(f"the stream from {self._server} ended before {DONE}: the text is not whole")


# The readers are functions, not methods: without a reference cycle, a stream that is dropped half way closes
# its connection at once.
def _read(response: httpx.Response, decoder: ChunkDecoder) -> Iterator[Chunk]:
    with contextlib.closing(response):
        try:
            for piece in response.iter_bytes():
                for chunk in decoder.feed(piece):
                    yield chunk
                    if decoder.closed:
                        return
                if decoder.done:
                    return
        except httpx.RequestError as error:
            if decoder.closed:
                return
            raise decoder.broken(error) from error
        raise decoder.broken()


async def _aread(response: httpx.Response, decoder: ChunkDecoder) -> AsyncIterator[Chunk]:
    async with contextlib.aclosing(response):
        try:
            async for piece in response.aiter_bytes():
                for chunk in decoder.feed(piece):
                    yield chunk
                    if decoder.closed:
                        return
                if decoder.done:
                    return
        except httpx.RequestError as error:
            if decoder.closed:
                return
            raise decoder.broken(error) from error
        raise decoder.broken()


class Stream:
    """Iterator of chunks as the server generates them; `adapter` says which weights answer.

    Closing it (`close()`, or leaving `with`) closes the connection, upon which the server stops generating.
    Iterating raises APIConnectionError when the stream breaks off before its end, APITimeoutError when no
    chunk comes within the timeout, and an APIStatusError for an error that the server meets on the way.
    """

    def __init__(self, response: httpx.Response, server: str) -> None:
        self._response = response
        self._decoder = ChunkDecoder(response, server)
        self._chunks = _read(response, self._decoder)

    @property
    def adapter(self) -> AdapterUsed:
        return self._decoder.adapter

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Chunk:
        if self._decoder.closed:
            raise StopIteration
        return next(self._chunks)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection. Iterating then ends."""
        self._decoder.closed = True
        self._response.close()


class AsyncStream:
    """The same for `async for` and `async with`; the request is sent by whichever of them comes first.

    An `async for` that is left early leaves the connection open: use `async with` or `aclose()` there.
    """

    def __init__(self, send: Callable[[], Awaitable[httpx.Response]], server: str) -> None:
        self._send = send
        self._server = server
        self._opened: tuple[httpx.Response, ChunkDecoder, AsyncIterator[Chunk]] | None = None
        self._closed = False

    @property
    def adapter(self) -> AdapterUsed:
        """Raises RuntimeError before the answer began."""
        if self._opened is None:
            raise RuntimeError("the stream is not open yet: use `async with`, or ask a chunk for its adapter")
        return self._opened[1].adapter

    async def _open(self) -> AsyncIterator[Chunk]:
        if self._opened is None:
            response = await self._send()
            decoder = ChunkDecoder(response, self._server)
            self._opened = response, decoder, _aread(response, decoder)
        return self._opened[2]

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        if self._closed:
            raise StopAsyncIteration
        return await anext(await self._open())

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the connection. Iterating then ends."""
        self._closed = True
        if self._opened is not None:
            response, decoder, _ = self._opened
            decoder.closed = True
            await response.aclose()

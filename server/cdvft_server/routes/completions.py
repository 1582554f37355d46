"""`/v1/completions` and `/v1/chat/completions`: OpenAI's bodies, whole or as server-sent events."""

import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from cdvft_server.answers import Chat, Completion
from cdvft_server.bodies import JsonRoute
from cdvft_server.presence import Gone, unless_gone
from cdvft_server.routes.common import ANSWERED_BY, Inferring, ServiceOf, WantedMode, errors
from cdvft_server.schemas import ChatRequest, CompletionRequest, GenerationFields
from cdvft_server.service import Generation, Piece, translate

__all__ = ["router"]

router = APIRouter(route_class=JsonRoute, tags=["generation"])

EVENTS: dict[str, Any] = {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "headers": ANSWERED_BY}
FAILURES = errors(400, 404, 408, 413, 415, 503)


@router.post("/v1/completions", response_model=Completion, responses={**FAILURES, 200: EVENTS})
async def complete(
    request: Request, body: CompletionRequest, service: ServiceOf, caller: Inferring, mode: WantedMode
) -> Response:
    """Continue each prompt with the base or an lm adapter. With `stream`, events of partial choices."""
    return await _answer(request, body, lambda: service.generator.complete(caller, body, mode), _TEXT)


@router.post("/v1/chat/completions", response_model=Chat, responses={**FAILURES, 200: EVENTS})
async def chat(
    request: Request, body: ChatRequest, service: ServiceOf, caller: Inferring, mode: WantedMode
) -> Response:
    """Answer a conversation, written with the adapter's chat template, else the tokenizer's, else a plain one."""
    return await _answer(request, body, lambda: service.generator.chat(caller, body, mode), _CHAT)


@dataclass(frozen=True)
class _Shape:
    """How one of the two routes writes its answer."""

    prefix: str
    whole: str
    part: str
    first: Callable[[int], dict[str, Any]] | None  # what a stream begins each choice with
    choice: Callable[[int, str, str | None], dict[str, Any]]
    piece: Callable[[Piece], dict[str, Any]]


def _text_choice(index: int, text: str, reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}


def _chat_choice(index: int, text: str, reason: str | None) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": None}
    return {"index": index, "message": message, "logprobs": None, "finish_reason": reason}


def _delta(index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}


_TEXT = _Shape(
    "cmpl",
    "text_completion",
    "text_completion",
    None,
    _text_choice,
    lambda p: _text_choice(p.index, p.text, p.finish_reason),
)
_CHAT = _Shape(
    "chatcmpl",
    "chat.completion",
    "chat.completion.chunk",
    lambda index: _delta(index, {"role": "assistant", "content": ""}),
    _chat_choice,
    lambda p: _delta(p.index, {"content": p.text} if p.text else {}, p.finish_reason),
)


async def _answer(
    request: Request, body: GenerationFields, start: Callable[[], Awaitable[Generation]], shape: _Shape
) -> Response:
    head = {"id": f"{shape.prefix}-{request.state.request_id}", "created": int(time.time()), "model": body.model}
    if body.stream:
        generation = await unless_gone(request, start())
        return _EventStream(generation, {**head, "object": shape.part}, shape, body.includes_usage)
    return await unless_gone(request, _whole(request, start, {**head, "object": shape.whole}, shape))


async def _whole(
    request: Request, start: Callable[[], Awaitable[Generation]], head: dict[str, Any], shape: _Shape
) -> Response:
    generation = await start()
    texts = [""] * generation.num_choices
    reasons: list[str | None] = [None] * generation.num_choices
    try:
        async for piece in generation.pieces():
            texts[piece.index] += piece.text
            reasons[piece.index] = piece.finish_reason or reasons[piece.index]
    finally:
        generation.close()
        request.state.usage = _usage(generation)
    choices = [shape.choice(i, text, reason) for i, (text, reason) in enumerate(zip(texts, reasons, strict=True))]
    answer = {**head, "choices": choices, "usage": _usage(generation)}
    return JSONResponse(answer, headers=generation.headers)


def _usage(generation: Generation) -> dict[str, int]:
    prompt, completion = generation.prompt_tokens, generation.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


class _EventStream(Response):
    """Server-sent events. Whatever ends it (the answer, an error, the client) closes the generation."""

    media_type = "text/event-stream"

    def __init__(self, generation: Generation, head: dict[str, Any], shape: _Shape, usage: bool) -> None:
        super().__init__(headers={**generation.headers, "cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._generation, self._head, self._shape = generation, head, shape
        self._usage: dict[str, Any] = {"usage": None} if usage else {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            with suppress(Gone):
                await unless_gone(request, self._send_all(send))
        finally:
            self._generation.close()
            request.state.usage = _usage(self._generation)

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._events()) as events:
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self) -> AsyncGenerator[bytes, None]:
        try:
            if self._shape.first is not None:
                for index in range(self._generation.num_choices):
                    yield self._chunk([self._shape.first(index)])
            async for piece in self._generation.pieces():
                yield self._chunk([self._shape.piece(piece)])
            if self._usage:
                yield _event({**self._head, "choices": [], "usage": _usage(self._generation)})
        except Exception as error:  # the status is sent: the stream itself must say what happened
            yield _event(translate(error).body)
        yield b"data: [DONE]\n\n"

    def _chunk(self, choices: list[dict[str, Any]]) -> bytes:
        return _event({**self._head, "choices": choices, **self._usage})


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"

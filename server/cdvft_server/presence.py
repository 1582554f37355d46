"""Whether the client is still there to be answered."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from fastapi import Request
from starlette.exceptions import HTTPException

__all__ = ["Gone", "unless_gone"]

T = TypeVar("T")


class Gone(HTTPException):
    """The client closed its connection before there was an answer."""

    def __init__(self) -> None:
        super().__init__(499, "the client closed its connection")


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The work's result; where the client goes away first, the work is cancelled and `Gone` raised.

    For after the body was read: what is received meanwhile is dropped.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        return task.result()
    finally:
        for own in (task, watch):
            own.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

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

    For after the body was read: what is received meanwhile is dropped. The work runs in the caller's own task: another
    would cost it several passes of the loop.
    """
    own = asyncio.current_task()
    assert own is not None
    before, gone = own.cancelling(), False

    def stop(watch: "asyncio.Task[None]") -> None:
        nonlocal gone
        if not watch.cancelled():
            watch.exception()  # whatever it was, nothing can be received
            gone = True
            own.cancel()

    watch = asyncio.create_task(_disconnected(request))
    watch.add_done_callback(stop)
    try:
        result = await work
    except BaseException:
        if gone and own.uncancel() <= before:
            raise Gone from None
        raise
    finally:
        watch.remove_done_callback(stop)
        watch.cancel()
    if gone:
        own.uncancel()
        raise Gone
    return result


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

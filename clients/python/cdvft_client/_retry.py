"""Whether to send a request again, and how long to wait first.

httpx's transports can retry a failed connect, but a transport of one's own switches off httpx's proxy settings
from the environment, and its attempts would multiply with those below. So all retries are decided here.
"""

import random

import httpx

from ._calls import Call
from ._exceptions import APIConnectionError, APIStatusError, CDVFTError

NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout)
BROKEN = (httpx.ReadError, httpx.WriteError, httpx.CloseError, httpx.RemoteProtocolError)
REFUSED = (429, 503)  # the server did nothing yet
LONGEST_WAIT = 60.0  # seconds: a Retry-After beyond it is the caller's to wait for
FIRST_WAIT, LONGEST_BACKOFF = 0.5, 8.0


class Retries:
    """The attempts of one call."""

    def __init__(self, call: Call[object], limit: int) -> None:
        self._left = limit if call.retry else 0
        self._repeatable = call.repeatable
        self._backoff = FIRST_WAIT

    def wait(self, error: CDVFTError) -> float:
        """Seconds to wait before sending again. Raises `error` where that is not to be done.

        Retry-After if the server gave one, else 0.5 s doubling up to 8 s, less up to half of it by chance.
        """
        if self._left == 0 or not self._may_repeat(error):
            raise error
        self._left -= 1
        told = error.retry_after if isinstance(error, APIStatusError) else None
        if told is not None:
            return told
        wait, self._backoff = self._backoff, min(2 * self._backoff, LONGEST_BACKOFF)
        return wait * random.uniform(0.5, 1.0)

    def _may_repeat(self, error: CDVFTError) -> bool:
        if isinstance(error, APIStatusError):
            return error.status_code in REFUSED and (error.retry_after or 0.0) <= LONGEST_WAIT
        if not isinstance(error, APIConnectionError):
            return False
        return isinstance(error.__cause__, NEVER_SENT) or (self._repeatable and isinstance(error.__cause__, BROKEN))

"""What may enter the engine: every check that a request can fail alone, before anything is queued."""

import math
from dataclasses import dataclass
from typing import Literal

from cdvft_server.engine.batch import Request, SamplingParams

__all__ = ["Draining", "Limits", "QueueFull", "RequestRefused"]


class RequestRefused(ValueError):
    """A request that cannot be served as it is. `param` names what was wrong: ids, type_ids, max_tokens, ..."""

    def __init__(self, request_id: str, param: str, message: str) -> None:
        super().__init__(message)
        self.request_id, self.param = request_id, param


class QueueFull(RuntimeError):
    """More requests wait than `max_queue` allows; try again later."""


class Draining(RuntimeError):
    """The engine is stopping and takes nothing new."""


@dataclass(frozen=True)
class Limits:
    """`context`: tokens of prompt and answer together (encoder: of the input)."""

    kind: Literal["encoder", "decoder"]
    vocabulary: int
    type_vocabulary: int
    context: int

    def check(self, request: Request) -> None:
        """Raises RequestRefused."""
        refusal = self._ids(request) or self._types(request) or self._purpose(request) or _tenant(request)
        if refusal is None and request.sampling is not None:
            refusal = _sampling(request.sampling)
        refusal = refusal or self._length(request)
        if refusal is not None:
            raise RequestRefused(request.id, *refusal)

    def _ids(self, request: Request) -> tuple[str, str] | None:
        if not request.ids:
            return "ids", "the input has no tokens; give at least one"
        for i, token in enumerate(request.ids):
            if type(token) is not int or not 0 <= token < self.vocabulary:
                return "ids", f"token id {token!r} at position {i} must be an integer from 0 to {self.vocabulary - 1}"
        return None

    def _types(self, request: Request) -> tuple[str, str] | None:
        types = request.type_ids
        if types is None:
            return None
        if self.kind == "decoder":
            return "type_ids", "a decoder takes no type ids"
        if len(types) != len(request.ids):
            return "type_ids", f"there are {len(types)} type ids for {len(request.ids)} tokens"
        if not all(type(t) is int and 0 <= t < self.type_vocabulary for t in types):
            return "type_ids", f"type ids must be integers from 0 to {self.type_vocabulary - 1}"
        return None

    def _purpose(self, request: Request) -> tuple[str, str] | None:
        lease = request.lease
        if lease is not None and lease.released:
            return "lease", "the adapter's lease was released before the request was submitted"
        if request.sampling is None and (lease is None or lease.head is None):
            return "sampling", "only an adapter with a head can score; generation needs sampling parameters"
        if request.sampling is not None and self.kind == "encoder":
            return "sampling", "an encoder does not generate"
        return None

    def _length(self, request: Request) -> tuple[str, str] | None:
        prompt, answer = len(request.ids), request.sampling.max_tokens if request.sampling else 0
        if prompt + answer <= self.context:
            return None
        if answer == 0 or prompt >= self.context:
            return "ids", f"the input has {prompt} tokens, at most {self.context - (answer > 0)} fit"
        return (
            "max_tokens",
            f"{prompt} prompt tokens and max_tokens {answer} exceed the context of {self.context}",
        )


def _tenant(request: Request) -> tuple[str, str] | None:
    if not isinstance(request.tenant, str) or not request.tenant:
        return "tenant", f"the tenant must be a name, it is {request.tenant!r}"
    weight = request.weight
    if not isinstance(weight, int | float) or isinstance(weight, bool) or not (math.isfinite(weight) and weight > 0):
        return "weight", f"the tenant's weight must be a finite number above 0, it is {weight!r}"
    return None


def _sampling(params: SamplingParams) -> tuple[str, str] | None:
    if type(params.max_tokens) is not int or params.max_tokens < 1:
        return "max_tokens", f"max_tokens must be an integer of at least 1, it is {params.max_tokens!r}"
    if not (math.isfinite(params.temperature) and params.temperature >= 0):
        return "temperature", f"temperature must be a finite number of at least 0, it is {params.temperature!r}"
    if not 0 < params.top_p <= 1:
        return "top_p", f"top_p must be above 0 and at most 1, it is {params.top_p!r}"
    if type(params.top_k) is not int or params.top_k < 0:
        return "top_k", f"top_k must be an integer of at least 0, it is {params.top_k!r}"
    if type(params.seed) is not int:
        return "seed", f"seed must be an integer, it is {params.seed!r}"
    return None

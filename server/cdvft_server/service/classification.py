"""Classify calls: every input its own adapter, all of them in the same batches."""

import math
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from cdvft.formatting import Encoded

from cdvft_server.engine.batch import Failed, Request, Scores
from cdvft_server.errors import ApiError, unavailable
from cdvft_server.ids import new_id
from cdvft_server.schemas import ClassifyRequest
from cdvft_server.service.access import Caller
from cdvft_server.service.calls import Call
from cdvft_server.service.encoding import Encoding
from cdvft_server.service.faults import translate
from cdvft_server.service.flights import Flight, landing_on_error
from cdvft_server.service.merging import Merging, Mode, mode_of
from cdvft_server.service.metering import Part
from cdvft_server.service.parts import Parts
from cdvft_server.service.residency import Residency
from cdvft_server.service.targets import Target, Targets, adapter_only

__all__ = ["Classified", "Classifier", "Scored"]


@dataclass(frozen=True)
class Scored:
    """One input's answer. `mode`: fft or merged. `labels` are (label, score), highest first, all of them; None for a
    regression."""

    target: Target
    mode: str
    score: float
    labels: list[tuple[str, float]] | None


@dataclass(frozen=True)
class Classified:
    rows: list[Scored]
    prompt_tokens: int


class Classifier:
    def __init__(
        self, parts: Parts, targets: Targets, encoding: Encoding, residency: Residency, merging: Merging
    ) -> None:
        self._parts, self._config, self._limiter, self._base = parts, parts.config, parts.limiter, parts.base
        self._targets, self._encoding, self._residency, self._merging = targets, encoding, residency, merging

    async def classify(self, caller: Caller, body: ClassifyRequest, mode: Mode) -> Classified:
        """`mode`: how the adapters are to run. Raises ApiError and whatever `faults.translate` knows. Cancelled, it
        cancels its rows."""
        if len(body.rows) > self._config.max_classify_rows:
            raise ApiError(
                "too_large", f"{len(body.rows)} inputs, at most {self._config.max_classify_rows} are allowed", "input"
            )
        found, flights = await self._targets.use(caller.tenant, body.models)
        with landing_on_error(flights):
            for target in found.values():
                adapter_only(target)
            targets = [found[model] for model in body.models]
            encoded = await self._encoding.rows(targets, body.rows, bool(body.truncate))
            logits, modes = await self._run(caller, targets, encoded, flights, mode)
        raw = bool(body.raw_scores)
        rows = [_scored(*row, raw) for row in zip(targets, modes, logits, strict=True)]
        return Classified(rows, sum(len(row.ids) for row in encoded))

    async def _run(
        self, caller: Caller, targets: Sequence[Target], encoded: Sequence[Encoded], flights: list[Flight], mode: Mode
    ) -> tuple[list[list[float]], list[str]]:
        """The head's outputs for each input, and its mode."""
        call = Call(self._parts, caller.tenant, flights, whole=True)
        call_id = new_id()
        total = sum(len(row.ids) for row in encoded)
        with self._limiter.reserve(caller, total) as charge:
            with ExitStack() as leases:
                rows = [target.row for target in targets if target.row is not None]
                held = await self._residency.lease_all(rows, leases)
                tokens = Counter[str]()
                for target, row in zip(targets, encoded, strict=True):
                    tokens[target.key] += len(row.ids)
                merged = await self._merging.use_all(rows, held, mode, tokens, leases)
                with ExitStack() as shares:
                    used = []
                    for index, (target, row) in enumerate(zip(targets, encoded, strict=True)):
                        (share,) = self._residency.shares(held[target.key], 1, shares)
                        request = Request(
                            f"{call_id}-{index}",
                            row.ids,
                            call.deliver,
                            type_ids=row.type_ids,
                            lease=share,
                            merged=self._merging.share(merged.get(target.key), shares),
                            tenant=caller.tenant,
                            weight=caller.weight,
                        )
                        account = target.account(caller.tenant, self._base.digest)
                        used.append(Part(request, account, target.public))
                    call.submit(used)
                    shares.pop_all()
            scores = await _collect(call)
            charge.settle(total)
        requests = [part.request for part in used]
        return [scores[request.id] for request in requests], [mode_of(request) for request in requests]


async def _collect(call: Call) -> dict[str, list[float]]:
    """The head's outputs by request id. Raises ApiError."""
    try:
        scores: dict[str, list[float]] = {}
        async for event in call.events():
            if isinstance(event, Failed):
                raise translate(event.error)
            if not isinstance(event, Scores):
                raise unavailable("draining", "the server is stopping; ask again")
            scores[event.request_id] = event.logits
        return scores
    finally:
        call.close()


def _scored(target: Target, mode: str, logits: Sequence[float], raw: bool) -> Scored:
    if not all(map(math.isfinite, logits)):
        raise unavailable("adapter_unavailable", f"adapter {target.name} gave a score that is not finite")
    labels = target.summary["labels"]
    if labels is None:
        return Scored(target, mode, logits[0], None)
    scores = logits if raw else _softmax(logits)
    ranked = sorted(zip(labels, scores, strict=True), key=lambda pair: -pair[1])
    return Scored(target, mode, ranked[0][1], ranked)


def _softmax(logits: Sequence[float]) -> list[float]:
    highest = max(logits)
    weights = [math.exp(value - highest) for value in logits]
    total = sum(weights)
    return [weight / total for weight in weights]

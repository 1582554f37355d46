"""Batches of requests for the engine: submitted at once, timed until the last terminal event."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cdvft.backbone import Backbone
from cdvft.formatting import encode_classification, encode_prompt

from cdvft_server.bench.settings import BenchError, Settings
from cdvft_server.bench.timing import Lap
from cdvft_server.engine import Engine, Event, Failed, Lease, MergedUse, Request, SamplingParams, Token

__all__ = ["Load", "greedy", "make_loads"]


@dataclass(frozen=True)
class Load:
    """`prompts` as token ids; `sampling` None means classification."""

    prompts: Sequence[list[int]]
    sampling: SamplingParams | None = None

    @property
    def tokens(self) -> int:
        """What throughput counts: the inputs' tokens, or where text is generated the new ones."""
        if self.sampling is None:
            return sum(map(len, self.prompts))
        return len(self.prompts) * self.sampling.max_tokens

    @property
    def longest(self) -> int:
        """Tokens of one request, prompt and answer."""
        return max(map(len, self.prompts)) + (self.sampling.max_tokens if self.sampling else 0)

    @property
    def kv_tokens(self) -> int:
        return sum(map(len, self.prompts)) + (self.tokens if self.sampling else 0)

    def run(
        self,
        engine: Engine,
        leases: Sequence[Lease | None],
        name: str = "",
        merged: Sequence[MergedUse | None] | None = None,
    ) -> Lap:
        """A lease for each request, None is the base; the engine gives them back, and those of `merged`. Raises the
        error of one that fails.

        `name`: begins the requests' ids, which must differ from those of all that run at the same time.
        """
        done, left, problems = threading.Event(), [len(self.prompts)], list[Exception]()

        def deliver(event: Event) -> None:
            if isinstance(event, Token):
                return
            if isinstance(event, Failed):
                problems.append(event.error)
            left[0] -= 1
            if left[0] == 0:
                done.set()

        rows = zip(self.prompts, leases, merged or [None] * len(leases), strict=True)
        requests = [
            Request(f"{name}.{k}", ids, deliver, lease=lease, sampling=self.sampling, merged=whole)
            for k, (ids, lease, whole) in enumerate(rows)
        ]
        start = time.perf_counter()
        engine.submit(requests)
        done.wait()
        seconds = time.perf_counter() - start
        if problems:
            raise problems[0]
        return Lap(self.tokens, seconds)


def greedy(max_tokens: int) -> SamplingParams:
    """So many tokens, whatever they are."""
    return SamplingParams(max_tokens, 0.0, 1.0, 0, 0, ignore_eos=True)


def make_loads(backbone: Backbone, texts: Sequence[str], settings: Settings) -> list[Load]:
    """The texts in batches of `settings.requests`, from the first again where they are fewer; too long ones are cut."""
    longest, tokenizer = backbone.info.max_length, backbone.tokenizer
    if settings.task == "classify":
        rule: dict[str, Any] = {"max_length": longest, "truncate": True, "type_vocab_size": 1}
        ids = [encode_classification(tokenizer, text, **rule).ids for text in texts]
    else:
        room = longest - settings.max_tokens
        if room < 1:
            raise BenchError(f"--max-tokens {settings.max_tokens}: the base takes {longest} tokens with the prompt")
        ids = [encode_prompt(tokenizer, text)[:room] for text in texts]
    count, size = max(1, len(ids) // settings.requests), settings.requests
    sampling = None if settings.task == "classify" else greedy(settings.max_tokens)
    return [Load([ids[(k * size + i) % len(ids)] for i in range(size)], sampling) for k in range(count)]

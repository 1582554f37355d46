"""Loads for the engine: requests submitted at once, and a wait for the last terminal event."""

import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from cdvft.backbone import Backbone
from cdvft.formatting import encode_classification
from cdvft_server.engine import AdapterPool, Engine, Event, Request, SamplingParams, Token


@dataclass(frozen=True)
class Load:
    """`prompts` as token ids; `sampling` None means classification."""

    prompts: list[list[int]]
    sampling: SamplingParams | None = None

    def run(self, engine: Engine, pool: AdapterPool, digests: Sequence[str]) -> None:
        """Request i names adapter i modulo their number; none names the base. Raises RuntimeError if one fails."""
        done, left, problems = threading.Event(), [len(self.prompts)], []

        def deliver(event: Event) -> None:
            if isinstance(event, Token):
                return
            if hasattr(event, "error"):
                problems.append(event)
            left[0] -= 1
            if left[0] == 0:
                done.set()

        leases = [pool.acquire(digests[k % len(digests)]) if digests else None for k in range(len(self.prompts))]
        engine.submit(
            [
                Request(str(k), ids, deliver, lease=lease, sampling=self.sampling)
                for k, (ids, lease) in enumerate(zip(self.prompts, leases, strict=True))
            ]
        )
        done.wait()
        if problems:
            raise RuntimeError(problems[0])


def classify_load(backbone: Backbone, texts: Sequence[str]) -> Load:
    """Each text as one classification input."""
    longest = backbone.info.max_length
    return Load(
        [
            encode_classification(backbone.tokenizer, text, max_length=longest, truncate=True, type_vocab_size=1).ids
            for text in texts
        ]
    )


def generate_load(backbone: Backbone, count: int, new_tokens: int, shortest: int = 16, longest: int = 256) -> Load:
    """Ragged random prompts, greedy, every request `new_tokens` long."""
    rng = random.Random(5)
    size = backbone.config.vocab_size
    prompts = [[rng.randrange(3, size) for _ in range(rng.randint(shortest, longest))] for _ in range(count)]
    return Load(prompts, SamplingParams(new_tokens, 0.0, 1.0, 0, 0, frozenset(), True))

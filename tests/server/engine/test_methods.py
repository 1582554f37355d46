"""One batch of all methods, several shapes of each, and the base: as each row alone, and as merged weights."""

import random

import pytest
import torch
from cdvft.methods import METHODS

from tests.server.engine.harness import serving
from tests.tiny import method_adapter

ROWS = 64
SHAPES = (0, 1, -1)  # of each method's examples
TOKENS = 12


def fleet(base, labels=None):
    named = [(method, which) for method in METHODS for which in SHAPES]
    return [
        method_adapter(base, method, which, seed, labels=labels and [f"l{k}" for k in range(2 + seed % 5)])
        for seed, (method, which) in enumerate(named)
    ]


def rows_of_ids(count, longest, vocabulary):
    rng = random.Random(7)
    return [[rng.randrange(5, vocabulary) for _ in range(rng.randint(1, longest))] for _ in range(count)]


def test_a_batch_of_all_methods_generates_as_each_row_alone_and_as_merged_weights(llama, decoder):
    adapters = [None, *fleet(llama.info)]
    work = [
        (prompt, adapters[k % len(adapters)]) for k, prompt in enumerate(rows_of_ids(ROWS, 24, llama.config.vocab_size))
    ]
    with serving(llama, max_batch_tokens=400) as served:
        together = served.submit(work, max_tokens=TOKENS)
        for listener in together:
            listener.wait()
        assert served.pool.stats().banks >= len(METHODS)
        for (prompt, adapter), listener in zip(work, together, strict=True):
            decoder.assert_greedy(prompt, adapter, listener.tokens, TOKENS)
            alone = served.generate(prompt, adapter, max_tokens=TOKENS)
            alone.wait()
            if alone.tokens != listener.tokens:  # a near tie fell the other way: both must be right
                decoder.assert_greedy(prompt, adapter, alone.tokens, TOKENS)
    prompt = [5, 6, 7, 8]
    answers = {tuple(decoder.greedy(prompt, adapter, TOKENS)) for adapter in adapters}
    assert len(answers) > 0.9 * len(adapters)  # else this would hold for an engine that ignores adapters


@pytest.mark.parametrize("name", ["roberta", "bert"])
def test_a_batch_of_all_methods_classifies_as_each_row_alone_and_as_merged_weights(request, encoders, name):
    backbone = request.getfixturevalue(name)
    adapters = fleet(backbone.info, labels=True)
    rows = rows_of_ids(ROWS, 40, 90)
    owners = [adapters[k % len(adapters)] for k in range(ROWS)]
    with serving(backbone, max_batch_tokens=2048) as served:
        listeners = served.send([served.request(row, own) for row, own in zip(rows, owners, strict=True)])
        for row, own, listener in zip(rows, owners, listeners, strict=True):
            found = torch.tensor(listener.logits())
            (merged,) = encoders[name].logits([row], own)
            torch.testing.assert_close(found, torch.tensor(merged), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(found, torch.tensor(served.score(row, own).logits()), rtol=1e-4, atol=1e-4)

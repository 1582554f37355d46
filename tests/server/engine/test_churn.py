"""Adapters come, go and are evicted while others decode: every answer is that of its own digest."""

import random
import threading

import pytest
from cdvft.prepared import prepare_adapter
from cdvft_server.engine import PoolFull

from tests.server.engine.harness import Listener, params, serving
from tests.tiny import random_adapter

PROMPTS = [[5, 6, 7, 8], list(range(30, 55)), [100]]
ANSWER = 24
STREAMS = 8
ROUNDS = 12


@pytest.fixture(scope="module")
def fleet(llama):
    """Three signatures; more adapters than the budget holds."""
    options = ({}, {"num_factors": 3}, {"partition_size": 8, "targets": ("q_proj", "k_proj", "down_proj")})
    return [random_adapter(llama.info, n, **options[n % 3]) for n in range(15)]


@pytest.fixture(scope="module")
def answers(decoder, fleet):
    """By adapter and prompt, from transformers on merged weights."""
    return {
        (n, k): decoder.greedy(prompt, adapter, ANSWER)
        for n, adapter in enumerate(fleet)
        for k, prompt in enumerate(PROMPTS)
    }


def test_answers_stay_right_while_adapters_churn(llama, fleet, answers):
    adapters = [prepare_adapter(adapter) for adapter in fleet]
    wrong, full, done = [], 0, threading.Event()

    with serving(llama, budget=24_000, max_batch_tokens=48) as served:

        def disturb(seed: int) -> None:
            """Place, use nothing, release, discard: rows move, banks grow, shrink and vanish."""
            rng = random.Random(seed)
            while not done.is_set():
                own = rng.choice(adapters)
                try:
                    served.pool.place(own).release()
                except PoolFull:
                    nonlocal full
                    full += 1
                if rng.random() < 0.5:
                    served.pool.discard(rng.choice(adapters).digest)
                served.engine.probe(rng.choice(adapters))

        def stream(seed: int) -> None:
            rng = random.Random(seed)
            for _ in range(ROUNDS):
                n, k = rng.randrange(len(adapters)), rng.randrange(len(PROMPTS))
                listener = Listener()
                try:
                    lease = served.lease(adapters[n])
                except PoolFull:
                    continue
                served.send([served.request(PROMPTS[k], deliver=listener, lease=lease, sampling=params(ANSWER))])
                listener.wait()
                if listener.tokens != answers[n, k]:
                    wrong.append((n, k, listener.tokens, answers[n, k]))

        disturbers = [threading.Thread(target=disturb, args=(n,)) for n in range(2)]
        streams = [threading.Thread(target=stream, args=(100 + n,)) for n in range(STREAMS)]
        for thread in [*disturbers, *streams]:
            thread.start()
        for thread in streams:
            thread.join()
        done.set()
        for thread in disturbers:
            thread.join()
        assert not wrong
        stats = served.pool.stats()
        assert stats.evicted > 10
        assert stats.placed > len(adapters)
        assert served.engine.stats().generated >= STREAMS * ROUNDS * ANSWER / 2

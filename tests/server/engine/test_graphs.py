"""Decode steps from recordings, with a recorder that calls again: the answers of the plain engine, whatever happens."""

import gc
import random
import weakref
from dataclasses import dataclass, replace
from importlib.util import find_spec

import pytest
import torch
from cdvft.methods import METHODS
from cdvft_server.engine import Event, Token
from cdvft_server.engine import graphs as module
from cdvft_server.engine.capture import Recording
from cdvft_server.engine.graphs import GraphRunner, _difference
from cdvft_server.engine.runners import Output

from tests.processes import run_python
from tests.server.engine.harness import Listener, before_forward, params, serving
from tests.server.engine.recorders import CallAgain, ExactSpans
from tests.tiny import method_adapter, random_adapter

PROMPT = [5, 6, 7, 8]


@pytest.fixture(autouse=True)
def early(monkeypatch):
    """Recordings after one plain batch of a kind."""
    monkeypatch.setattr(module, "AFTER", 1)


class Doing(Listener):
    """Does something in the engine's thread as the answer has so many tokens."""

    def __init__(self, tokens: int, action) -> None:
        super().__init__()
        self._at, self._action = tokens, action

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if isinstance(event, Token) and event.position == self._at:
            self._action()


def fleet(base):
    """Two CDVFT signatures, one that no kernel takes, every other method."""
    own = [random_adapter(base, 1), random_adapter(base, 2), random_adapter(base, 3, partition_size=8)]
    own += [random_adapter(base, 4, num_factors=3, targets=("down_proj", "q_proj"))]
    return [None, *own, *(method_adapter(base, method, 0, 10 + k) for k, method in enumerate(METHODS))]


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, 259) for _ in range(rng.randint(1, 30))] for _ in range(count)]


def poison(served) -> None:
    """What nobody wrote in the arena must not be seen."""
    for tensor in (*served.engine._arena.keys, *served.engine._arena.values):
        tensor.fill_(torch.nan)


def test_ragged_streams_of_all_methods_that_join_and_leave(llama, decoder):
    """Neighbours of many banks; streams end after 6 to 30 tokens, and as one of them reaches 9 four others join."""
    adapters = fleet(llama.info)
    work = [(prompt, adapters[k % len(adapters)], 6 + 3 * (k % 9)) for k, prompt in enumerate(prompts(20))]
    with serving(llama, kv_tokens=1200, recorder=CallAgain(), start=False) as served:
        poison(served)
        served.engine.start()
        requests = [served.request(prompt, own, sampling=params(n)) for prompt, own, n in work]
        late = requests[16:]
        requests[8] = replace(requests[8], deliver=Doing(8, lambda: served.engine.submit(late)))
        served.engine.submit(requests[:16])
        for (prompt, adapter, n), request in zip(work, requests, strict=True):
            assert request.deliver.reason() == "length"
            decoder.assert_greedy(prompt, adapter, request.deliver.tokens, n)
        stats = served.engine.stats()
        assert stats.graphs_refused == 0
        assert stats.graph_replays > stats.batches / 3
        assert served.engine.recording.on


def test_buckets_change_as_streams_leave(llama, decoder):
    adapters = [random_adapter(llama.info, seed) for seed in range(4)]
    recorder = CallAgain()
    with serving(llama, recorder=recorder) as served:
        requests = [served.request(p, adapters[k % 4], sampling=params(6 * k + 6)) for k, p in enumerate(prompts(9))]
        for k, (prompt, listener) in enumerate(zip(prompts(9), served.send(requests), strict=True)):
            listener.wait()
            decoder.assert_greedy(prompt, adapters[k % 4], listener.tokens, 6 * k + 6)
        assert recorder.recorded == served.engine.stats().graphs == 5  # 16, 8, 4, 2 and 1
        before = served.engine.stats().graph_replays
        served.generate(PROMPT, adapters[1], max_tokens=9).wait()
        assert served.engine.stats().graph_replays == before + 8  # at once: the recording is there
        assert recorder.recorded == 5


def test_a_bank_that_grows_has_new_recordings_and_its_old_tables_go(llama, decoder):
    """The bank is resized in the middle of an answer; nothing holds on to the tables from before."""
    own, others = random_adapter(llama.info, 1), [random_adapter(llama.info, seed) for seed in range(2, 9)]
    recorder, old = CallAgain(), []
    with serving(llama, recorder=recorder) as served:
        lease = served.lease(own)

        def grow() -> None:
            old.append(weakref.ref(served.pool.placements([lease])[0].bank))
            for other in others:
                served.lease(other).release()
            assert served.pool.placements([lease])[0].bank is not old[0]()

        listener = Doing(20, grow)
        served.send([served.request(PROMPT, deliver=listener, lease=lease, sampling=params(40))])
        assert listener.reason() == "length"
        decoder.assert_greedy(PROMPT, own, listener.tokens, 40)
        assert recorder.recorded == 2
        assert served.engine.stats().graphs == 1
        assert served.engine.stats().graph_replays == 35  # of 39 decode steps 2 plain and 2 recorded
        gc.collect()
        assert old[0]() is None


def test_only_the_recordings_used_last_are_kept(llama, decoder, monkeypatch):
    monkeypatch.setattr(module, "MOST_RECORDINGS", 2)
    adapters = fleet(llama.info)[:5]
    with serving(llama, recorder=CallAgain()) as served:
        for _ in range(2):
            for adapter in adapters:
                listener = served.generate(PROMPT, adapter, max_tokens=8)
                listener.wait()
                decoder.assert_greedy(PROMPT, adapter, listener.tokens, 8)
        assert served.engine.stats().graphs == 2


class Raises(CallAgain):
    def record(self, function):
        raise RuntimeError("operation not permitted when stream is capturing")


class RaisesOnce(CallAgain):
    failed = False

    def record(self, function):
        if not self.failed:
            self.failed = True
            raise torch.OutOfMemoryError("for once")
        return super().record(function)


class RaisesLater(CallAgain):
    def record(self, function):
        calls, repeat = iter(range(4)), super().record(function)

        def fails():
            next(calls)
            return repeat()

        return fails


@dataclass(frozen=True, eq=False)
class OneKeyTooFew(ExactSpans):
    """The second layer's keys and values are wrong then."""

    def __call__(self, query, key, value, scaling):
        return ExactSpans(self.start, (self.length - 1).clamp(min=1))(query, key, value, scaling)


class WrongResults(CallAgain):
    def record(self, function):
        return lambda: tuple(torch.zeros_like(result) for result in function())


@pytest.mark.parametrize(
    ("recorder", "replays"),
    [(Raises(), 0), (RaisesLater(), 3), (CallAgain(OneKeyTooFew), 0), (WrongResults(), 0)],
    ids=["capture fails", "a later replay fails", "wrong attention", "wrong results"],
)
def test_whatever_fails_the_plain_forward_serves(llama, decoder, caplog, recorder, replays):
    """Also the keys and values in the arena are those of the plain forward."""
    own = random_adapter(llama.info, 1)
    with serving(llama, recorder=recorder) as served:
        listener = served.generate(PROMPT, own, max_tokens=20)
        assert listener.reason() == "length"
        decoder.assert_greedy(PROMPT, own, listener.tokens, 20)
        stats = served.engine.stats()
        assert (stats.graphs, stats.graphs_refused, stats.graph_replays) == (0, 1, replays)
        assert (stats.failed, stats.retried) == (0, 0)
        assert len([r for r in caplog.records if "1 tokens, 1 banks run unrecorded" in r.getMessage()]) == 1


@dataclass(frozen=True, eq=False)
class Broken(ExactSpans):
    def __call__(self, query, key, value, scaling):
        raise RuntimeError("no C compiler")


def test_what_failed_is_tried_again_much_later(llama, decoder, monkeypatch):
    monkeypatch.setattr(module, "AGAIN", 10)
    recorder = RaisesOnce()
    with serving(llama, recorder=recorder) as served:
        listener = served.generate(PROMPT, max_tokens=30)
        listener.wait()
        decoder.assert_greedy(PROMPT, None, listener.tokens, 30)
        stats = served.engine.stats()
        # 29 decode steps: one plain, the failure, 11 plain, the recording
        assert (stats.graphs, stats.graphs_refused, stats.graph_replays) == (1, 1, 15)


def test_without_a_working_attention_nothing_is_recorded(llama, decoder, caplog):
    with serving(llama, recorder=CallAgain(Broken)) as served:
        assert served.engine.recording == Recording(False, "the attention kernel fails")
        assert "no C compiler" in caplog.text
        listener = served.generate(PROMPT, max_tokens=9)
        listener.wait()
        decoder.assert_greedy(PROMPT, None, listener.tokens, 9)
        assert (served.engine.stats().graphs, served.engine.stats().graphs_refused) == (0, 0)


def test_a_request_whose_forward_fails_takes_no_recording_with_it(llama, decoder):
    """The victim's next token makes the pass raise, in a step that is repeated; its neighbour's next steps are."""
    first, second = [5, 6, 7, 8], [40, 41, 42]
    answer, other = decoder.greedy(first, None, 20), decoder.greedy(second, None, 20)
    at = next(i for i in range(6, 19) if answer[i] not in [*answer[:i], *other, *first, *second])

    def refuse(ids):
        if (ids == answer[at]).any():
            raise ZeroDivisionError

    with serving(llama, recorder=CallAgain()) as served, before_forward(llama, refuse):
        victim, neighbour = served.submit([(first, None), (second, None)], max_tokens=20)
        assert isinstance(victim.error(), ZeroDivisionError)
        assert victim.tokens == answer[: at + 1]
        assert neighbour.reason() == "length"
        decoder.assert_greedy(second, None, neighbour.tokens, 20)
        stats = served.engine.stats()
        assert (stats.failed, stats.retried, stats.graphs_refused) == (1, 1, 0)
        assert stats.graphs == 2
        assert stats.graph_replays > 10


def test_recordings_stop_for_good_where_they_may_no_longer_be_intact(llama, decoder):
    recorder = CallAgain()
    with serving(llama, recorder=recorder) as served:
        served.generate(PROMPT, max_tokens=9).wait()
        assert served.engine.stats().graphs == 1
        recorder.whole = False
        listener = served.generate(PROMPT, max_tokens=9)
        listener.wait()
        decoder.assert_greedy(PROMPT, None, listener.tokens, 9)
        assert served.engine.recording == Recording(False, "too many FFT plans")
        assert (served.engine.stats().graphs, served.engine.stats().graph_replays) == (0, 6)


def test_rows_without_an_answer_to_sample(llama):
    """Prompts of one token in a batch: a head sees the recorded step's hidden states."""
    scorer = random_adapter(llama.info, 1, task="classification")
    found = []
    for recorder in (None, CallAgain()):
        with serving(llama, max_batch_tokens=1, recorder=recorder) as served:
            found.append([served.score([*range(20, 30)], scorer).logits() for _ in range(2)])
            assert served.engine.stats().graph_replays == (16 if recorder else 0)
    torch.testing.assert_close(torch.tensor(found[1]), torch.tensor(found[0]), rtol=1e-4, atol=1e-4)


def test_tokens_that_are_not_finite_prove_nothing():
    hidden = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    broken = hidden.clone()
    broken[1] = torch.nan
    assert _difference(Output(broken, None), Output(broken, None)) == 0
    assert _difference(Output(hidden, hidden), Output(broken, hidden)) == 0
    assert _difference(Output(broken[1:2], None), Output(broken[1:2], None)) is None
    worst = _difference(Output(broken, None), Output(hidden, None))
    assert worst is not None
    assert not worst < 1


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.timeout(1200)  # seconds of work, on a machine that may be busy
def test_the_kernels_serve_under_triton_s_interpreter() -> None:
    cases = "tests/server/engine/graph_cases.py"
    shown = run_python("-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", cases, TRITON_INTERPRET="1")
    print(shown)
    assert " passed" in shown
    assert "skipped" not in shown


def test_an_encoder_takes_no_recorder(roberta):
    with serving(roberta, recorder=CallAgain(), start=False) as served:
        assert not isinstance(served.engine._runner, GraphRunner)

"""Work of others in the engine's thread, between its steps."""

import threading

import pytest
from cdvft_server.engine import AdapterPool, Draining, Engine

from tests.server.engine.harness import WAIT, serving


def test_calls_run_in_the_engines_thread_beside_requests(llama, decoder):
    prompt = [5, 6, 7]
    with serving(llama) as served:
        streams = [served.generate(prompt, None, max_tokens=20) for _ in range(3)]
        names = [served.engine.call(lambda: threading.current_thread().name) for _ in range(5)]
        assert {name.result(WAIT) for name in names} == {"cdvft-engine"}
        failing = served.engine.call(lambda: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            failing.result(WAIT)
        for stream in streams:  # nobody else is hurt
            stream.wait()
            decoder.assert_greedy(prompt, None, stream.tokens, 20)


def test_a_call_that_was_given_up_does_not_run(llama):
    with serving(llama) as served:
        begun, go, ran = threading.Event(), threading.Event(), threading.Event()
        first = served.engine.call(lambda: begun.set() or go.wait(WAIT))
        assert begun.wait(WAIT)
        given_up = served.engine.call(ran.set)
        assert given_up.cancel()
        go.set()
        assert first.result(WAIT)
        assert served.engine.call(lambda: "alive").result(WAIT) == "alive"
        assert not ran.is_set()


def test_an_engine_whose_start_fails_ends_what_waits(llama, monkeypatch):
    monkeypatch.setattr("cdvft_server.engine.engine.fit_costs", lambda *_: 1 // 0)
    with serving(llama, start=False, fit_costs=True) as served:
        early = served.generate([5, 6], None)
        with pytest.raises(ZeroDivisionError):
            served.engine.start()
        assert early.reason() == "cancelled"
        with pytest.raises(Draining):
            served.generate([5, 6], None)


def test_a_stopped_or_unstarted_engine_takes_no_calls(llama):
    engine = Engine(llama, AdapterPool(llama.device, 1 << 20))
    with pytest.raises(RuntimeError, match="has not been started"):
        engine.call(int)
    engine.start()
    begun, go = threading.Event(), threading.Event()

    def wait() -> str:
        begun.set()
        assert go.wait(WAIT)
        return "done"

    first, second = engine.call(wait), engine.call(lambda: "too")
    assert begun.wait(WAIT)
    go.set()
    engine.stop()
    assert (first.result(WAIT), second.result(WAIT)) == ("done", "too")  # what was accepted is done
    with pytest.raises(Draining):
        engine.call(int)

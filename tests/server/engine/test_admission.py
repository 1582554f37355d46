"""What `submit` refuses, by parameter, and that a refusal changes nothing."""

import math

import pytest
from cdvft_server.engine import Engine, EngineConfig, RequestRefused
from cdvft_server.engine.pool import AdapterPool

from tests.server.engine.harness import params, serving
from tests.tiny import random_adapter

PROMPT = [5, 6, 7]

REFUSED = {
    "empty": ({"ids": []}, "ids", "no tokens"),
    "beyond the vocabulary": ({"ids": [5, 259]}, "ids", "token id 259 at position 1 .* from 0 to 258"),
    "negative": ({"ids": [-1]}, "ids", "token id -1"),
    "not an integer": ({"ids": [5, True]}, "ids", "token id True"),
    "text": ({"ids": ["a"]}, "ids", "token id 'a'"),
    "too long": ({"ids": [5] * 256}, "ids", "256 tokens, at most 255"),
    "too much": ({"sampling": params(254)}, "max_tokens", "3 prompt tokens and max_tokens 254 exceed .* 256"),
    "no answer": ({"sampling": params(0)}, "max_tokens", "at least 1"),
    "temperature": ({"sampling": params(1, temperature=math.nan)}, "temperature", "finite"),
    "hot": ({"sampling": params(1, temperature=math.inf)}, "temperature", "finite"),
    "cold": ({"sampling": params(1, temperature=-0.1)}, "temperature", "at least 0"),
    "top_p 0": ({"sampling": params(1, top_p=0.0)}, "top_p", "above 0"),
    "top_p nan": ({"sampling": params(1, top_p=math.nan)}, "top_p", "above 0"),
    "top_p 2": ({"sampling": params(1, top_p=2.0)}, "top_p", "at most 1"),
    "top_k": ({"sampling": params(1, top_k=-1)}, "top_k", "at least 0"),
    "seed": ({"sampling": params(1, seed=0.5)}, "seed", "integer"),
    "types": ({"type_ids": [0, 0, 0]}, "type_ids", "decoder"),
    "score with the base": ({"sampling": None}, "sampling", "with a head"),
}


@pytest.fixture(scope="module")
def served(llama):
    with serving(llama) as served:
        yield served


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_parameter(served, case):
    fields, param, message = REFUSED[case]
    good = served.request(PROMPT, sampling=params(2))
    bad = served.request(**({"ids": PROMPT, "sampling": params(2)} | fields))
    with pytest.raises(RequestRefused, match=message) as caught:
        served.engine.submit([good, bad])
    assert (caught.value.param, caught.value.request_id) == (param, bad.id)
    assert served.engine.stats().waiting == served.engine.stats().running == 0
    served.send([good])
    assert good.deliver.reason() == "length"
    assert len(good.deliver.events) == 3


def test_top_k_may_exceed_the_vocabulary(served):
    assert served.generate(PROMPT, temperature=1.0, top_k=10**9).reason() == "length"


def test_encoders_do_not_generate_and_check_type_ids(bert):
    adapter = random_adapter(bert.info, 1, "classification")
    with serving(bert) as served:
        for fields, param in (
            ({"sampling": params(2)}, "sampling"),
            ({"type_ids": [0]}, "type_ids"),
            ({"type_ids": [0, 2, 0]}, "type_ids"),
            ({"ids": [5] * 97}, "ids"),
        ):
            request = served.request(**({"ids": PROMPT, "adapter": adapter} | fields))
            with pytest.raises(RequestRefused) as caught:
                served.engine.submit([request])
            assert caught.value.param == param
            request.lease.release()
        assert len(served.score([5] * 96, adapter).logits()) == 2


def test_an_id_in_flight_is_refused_and_free_again_afterwards(llama):
    with serving(llama, start=False) as served:
        first = served.request(PROMPT, id="same", sampling=params(2))
        served.send([first])
        for batch in ([served.request(PROMPT, id="same", sampling=params(2))],):
            with pytest.raises(RequestRefused, match="in flight"):
                served.engine.submit(batch)
        twins = [served.request(PROMPT, id="twin", sampling=params(2)) for _ in range(2)]
        with pytest.raises(RequestRefused, match="in flight"):
            served.engine.submit(twins)
        served.engine.start()
        first.deliver.wait()
        again = served.request(PROMPT, id="same", sampling=params(2))
        served.send([again])
        assert again.deliver.reason() == "length"


def test_a_lease_belongs_to_one_request(llama):
    adapter = random_adapter(llama.info, 1)
    with serving(llama, start=False) as served:
        lease = served.lease(adapter)
        requests = [served.request(PROMPT, lease=lease, sampling=params(2)) for _ in range(2)]
        with pytest.raises(RequestRefused, match="another request"):
            served.engine.submit(requests)
        served.send(requests[:1])
        with pytest.raises(RequestRefused, match="another request"):
            served.engine.submit(requests[1:])
        served.engine.stop()
        late = served.request(PROMPT, lease=lease, sampling=params(2))
        with pytest.raises(RequestRefused, match="released"):
            served.engine.submit([late])


def test_the_context_is_bounded_by_the_arena(llama):
    with serving(llama, kv_tokens=20) as served:
        assert served.engine.context_length == 20
        with pytest.raises(RequestRefused, match="exceed the context of 20"):
            served.generate(PROMPT, max_tokens=18)
        assert served.generate(PROMPT, max_tokens=17).reason() == "length"


def test_a_context_beyond_the_base_is_refused(llama):
    with pytest.raises(ValueError, match="context_length must be at most the base's 256, it is 257"):
        Engine(llama, AdapterPool("cpu", 0), EngineConfig(context_length=257))


@pytest.mark.parametrize("field", ["max_batch_tokens", "context_length", "kv_tokens", "max_queue"])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_are_positive(field, value):
    with pytest.raises(ValueError, match=f"{field} must be at least 1, it is {value}"):
        EngineConfig(**{field: value})

"""`/v1/completions` and `/v1/chat/completions`, answered whole."""

from typing import Any

import pytest
from cdvft.adapter import Adapter
from cdvft.checkpoint import adapter_files
from cdvft.formatting import encode_chat, encode_prompt
from cdvft.templates import PLAIN_TEMPLATE, render

from tests.server.engine.reference import Decoder
from tests.server.http.harness import Fleet, error_of
from tests.tiny import random_adapter


@pytest.fixture(scope="module")
def reference(decoder: Fleet) -> Decoder:
    return Decoder(decoder.base.path)


def expected(decoder: Fleet, reference: Decoder, ids: list[int], adapter: Adapter | None, count: int) -> str:
    tokens = reference.greedy(ids, adapter, count, eos=1)
    return decoder.base.tokenizer.decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize("name", ["tiny-llama", "writer", "poet"])
def test_greedy_equals_merged_weights(decoder: Fleet, reference: Decoder, name: str) -> None:
    """Promise 1, through HTTP."""
    ids = encode_prompt(decoder.base.tokenizer, "a big dog")
    answer = decoder.live.complete(name, "a big dog", max_tokens=24)
    text = expected(decoder, reference, ids, decoder.adapters.get(name), 24)
    assert answer.json()["choices"] == [{"index": 0, "text": text, "logprobs": None, "finish_reason": "length"}]
    assert answer.json()["usage"] == {"prompt_tokens": len(ids), "completion_tokens": 24, "total_tokens": len(ids) + 24}


def test_says_who_answered(decoder: Fleet) -> None:
    """Promise 2: which adapter, which digest, which mode."""
    base, writer = decoder.live.complete("tiny-llama"), decoder.live.complete("writer")
    assert base.headers["x-adapter"] == "tiny-llama"
    assert base.headers["x-adapter-digest"] == decoder.base.info.digest
    assert base.headers["x-adapter-mode"] == "base"
    assert "x-adapter-version" not in base.headers
    assert writer.headers["x-adapter"] == "writer"
    assert writer.headers["x-adapter-digest"] == decoder.adapters["writer"].digest
    assert writer.headers["x-adapter-mode"] == "fft"
    assert writer.headers["x-adapter-version"] == "1"
    assert writer.json()["model"] == "writer"


def test_every_way_to_name_an_adapter(decoder: Fleet) -> None:
    digest = decoder.adapters["writer"].digest
    names = ["writer", "tiny-llama:writer", "default/writer", "tiny-llama:default/writer", "writer@latest", "writer@1"]
    answers = [decoder.live.complete(name) for name in [*names, f"writer@{digest}", f"writer@{digest[:19]}"]]
    assert {answer.headers["x-adapter-digest"] for answer in answers} == {digest}
    assert {answer.headers["x-adapter"] for answer in answers} == {"writer"}
    assert len({answer.json()["choices"][0]["text"] for answer in answers}) == 1


@pytest.mark.parametrize("mode", ["fft", "auto"])
def test_modes_of_this_server(decoder: Fleet, mode: str) -> None:
    answer = decoder.live.post("/v1/completions", {"model": "writer", "prompt": "a"}, headers={"x-adapter-mode": mode})
    assert answer.headers["x-adapter-mode"] == "fft"


def test_choices_are_ordered_by_prompt_and_seeded_by_number(decoder: Fleet) -> None:
    """Choice prompt * n + i is that prompt alone with seed + i."""
    prompts = ["the cat", "a dog", [5, 6, 7]]
    fields: dict[str, Any] = {"temperature": 1.5, "top_k": 40, "top_p": 0.95}
    together = decoder.live.complete("poet", prompts[:2], n=3, seed=2**63 - 2, **fields).json()
    texts = [choice["text"] for choice in together["choices"]]
    assert [choice["index"] for choice in together["choices"]] == list(range(6))
    assert len(set(texts)) > 3
    for k, prompt in enumerate(prompts[:2]):
        for i in range(2):
            alone = decoder.live.complete("poet", prompt, seed=2**63 - 2 + i, **fields).json()
            assert alone["choices"][0]["text"] == texts[3 * k + i]
    wrapped = decoder.live.complete("poet", prompts[1], seed=-(2**63), **fields).json()
    assert wrapped["choices"][0]["text"] == texts[5]


def test_without_a_seed_answers_differ(decoder: Fleet) -> None:
    texts = {decoder.live.complete("poet", temperature=1).json()["choices"][0]["text"] for _ in range(5)}
    assert len(texts) > 1


def test_ids_and_text_are_the_same_prompt(decoder: Fleet) -> None:
    ids = encode_prompt(decoder.base.tokenizer, "the cat")
    forms = ["the cat", ["the cat"], ids, [ids]]
    answers = [decoder.live.complete("writer", form).json() for form in forms]
    assert len({answer["choices"][0]["text"] for answer in answers}) == 1
    assert {answer["usage"]["prompt_tokens"] for answer in answers} == {len(ids)}


def test_ids_are_taken_as_they_are(decoder: Fleet) -> None:
    """No special tokens are put before them."""
    ids = encode_prompt(decoder.base.tokenizer, "the cat")[1:]
    assert decoder.live.complete("writer", ids).json()["usage"]["prompt_tokens"] == len(ids)


def test_default_lengths(decoder: Fleet) -> None:
    """Completions 16, chat the rest of the context; a completion near its end what is left."""
    assert decoder.live.complete("writer", ignore_eos=True).json()["usage"]["completion_tokens"] == 16
    assert decoder.live.complete("writer", [7] * 250, ignore_eos=True).json()["usage"]["completion_tokens"] == 6
    messages = [{"role": "user", "content": "the cat"}]
    chat = decoder.live.post(
        "/v1/chat/completions", {"model": "writer", "messages": messages, "ignore_eos": True, "temperature": 0}
    )
    assert chat.json()["usage"]["total_tokens"] == 256


def test_end_tokens(decoder: Fleet) -> None:
    """An id that the greedy answer has ends it when it is a stop id; its text is not part of the answer."""
    whole = decoder.live.complete("writer", max_tokens=40, ignore_eos=True).json()["choices"][0]["text"]
    ids = encode_prompt(decoder.base.tokenizer, "the cat")
    tokens = Decoder(decoder.base.path).greedy(ids, decoder.adapters["writer"], 40)
    stop = tokens[5]
    first = tokens.index(stop)
    answer = decoder.live.complete("writer", max_tokens=40, ignore_eos=True, stop_token_ids=[stop]).json()
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == first
    assert whole.startswith(answer["choices"][0]["text"].rstrip("\ufffd"))


def test_stop_strings_end_the_text_before_them(decoder: Fleet) -> None:
    whole = decoder.live.complete("tiny-llama", max_tokens=60).json()["choices"][0]["text"]
    stop = whole[20:23]
    answer = decoder.live.complete("tiny-llama", max_tokens=60, stop=["never in it", stop]).json()["choices"][0]
    assert answer == {
        "index": 0,
        "text": whole[: whole.index(stop)],
        "logprobs": None,
        "finish_reason": "stop",
    }
    decoder.live.wait_until_idle()


def test_chat_without_a_template_is_role_and_content_lines(decoder: Fleet, reference: Decoder) -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "the cat"}]
    body = {"model": "writer", "messages": messages, "max_completion_tokens": 12, "temperature": 0}
    answer = decoder.live.post("/v1/chat/completions", body).json()
    tokenizer = decoder.base.tokenizer
    ids = encode_chat(tokenizer, render(PLAIN_TEMPLATE, messages, bos_token="<s>", eos_token="</s>"))
    text = expected(decoder, reference, ids, decoder.adapters["writer"], 12)
    message = {"role": "assistant", "content": text, "refusal": None}
    assert answer["choices"] == [{"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}]
    assert answer["object"] == "chat.completion"
    assert answer["usage"]["prompt_tokens"] == len(ids)


def test_chat_with_the_adapters_template(decoder: Fleet) -> None:
    template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[you]"
    decoder.add("guided", random_adapter(decoder.base.info, 7, template=template))
    parts = [{"type": "text", "text": "the "}, {"type": "text", "text": "cat"}]
    body = {"model": "guided", "messages": [{"role": "user", "content": parts}], "max_tokens": 8, "temperature": 0}
    chat = decoder.live.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
    plain = decoder.live.complete("guided", "[user]the cat[you]", max_tokens=8).json()["choices"][0]["text"]
    assert chat == plain


def test_a_template_that_never_ends_costs_only_its_own_request(decoder: Fleet) -> None:
    """Promise 5."""
    template = "{% for i in range(99999) %}{% for j in range(99999) %}{{ i * j }}{% endfor %}{% endfor %}"
    decoder.add("endless", random_adapter(decoder.base.info, 8, template=template))
    with decoder.unharmed():
        body = {"model": "endless", "messages": [{"role": "user", "content": "a"}]}
        error = error_of(decoder.live.post("/v1/chat/completions", body))
        assert error["code"] == "invalid_request"
        assert "template" in error["message"]


def test_a_template_that_cannot_be_compiled_is_refused_at_upload(decoder: Fleet) -> None:
    for template in ("{% for %}", "{{ 9 ** (9 ** 9) }}"):
        files = adapter_files(random_adapter(decoder.base.info, 9, template=template), decoder.base.info)
        answer = decoder.live.upload("broken", files)
        assert answer.status_code == 422
        assert "template" in error_of(answer)["message"]


def test_an_answer_of_ours_can_be_sent_back(decoder: Fleet) -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "the cat"}]
    body = {"model": "writer", "messages": messages, "max_tokens": 4}
    messages.append(decoder.live.post("/v1/chat/completions", body).json()["choices"][0]["message"])
    messages.append({"role": "user", "content": "and?", "name": "me"})
    assert decoder.live.post("/v1/chat/completions", body).status_code == 200


def test_unused_and_neutral_fields_are_accepted(decoder: Fleet) -> None:
    neutral = {
        "logprobs": None,
        "echo": False,
        "best_of": 1,
        "suffix": "",
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "logit_bias": {},
        "tools": [],
        "response_format": {"type": "text"},
        "user": "me",
        "metadata": {"a": "b"},
        "stream": False,
        "stop": None,
    }
    assert decoder.live.complete("writer", **neutral).status_code == 200


def test_request_ids(decoder: Fleet) -> None:
    own = decoder.live.get("/health", headers={"x-request-id": "mine-1"})
    assert own.headers["x-request-id"] == "mine-1"
    made = [decoder.live.get("/health", headers={"x-request-id": "a b"}).headers["x-request-id"] for _ in range(2)]
    assert made[0].startswith("req_")
    assert made[0] != made[1]

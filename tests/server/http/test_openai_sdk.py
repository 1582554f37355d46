"""OpenAI's own client, unchanged: promise of the API's shape."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.server.http.harness import Fleet

MESSAGES = [{"role": "user", "content": "the cat"}]


@pytest.fixture(scope="module")
def client(decoder: Fleet) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{decoder.live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_completions(decoder: Fleet, client: openai.OpenAI) -> None:
    answer = client.completions.create(model="writer", prompt=["a", "b"], n=2, max_tokens=5, temperature=0, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    own = decoder.live.complete("writer", ["a", "b"], n=2, max_tokens=5, seed=1).json()
    assert [choice.text for choice in answer.choices] == [choice["text"] for choice in own["choices"]]
    assert answer.usage is not None
    assert answer.usage.total_tokens == own["usage"]["total_tokens"]


def test_a_stream_of_completions(client: openai.OpenAI) -> None:
    fields = {"model": "writer", "prompt": "a", "max_tokens": 12, "temperature": 0}
    whole = client.completions.create(**fields)
    stream = client.completions.create(**fields, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert chunks[-1].usage == whole.usage


def test_chat(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"model": "writer", "messages": MESSAGES, "max_tokens": 30, "temperature": 0}
    whole = client.chat.completions.create(**fields)
    assert whole.choices[0].message.role == "assistant"
    again = [*MESSAGES, whole.choices[0].message, {"role": "user", "content": "more"}]
    assert client.chat.completions.create(**{**fields, "messages": again}).choices
    fields["stop"] = str(whole.choices[0].message.content)[5:7]
    whole = client.chat.completions.create(**fields)
    with client.chat.completions.stream(**fields) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].finish_reason == whole.choices[0].finish_reason == "stop"


def test_models(decoder: Fleet, client: openai.OpenAI) -> None:
    names = {model.id for model in client.models.list()}
    assert {"tiny-llama", "writer", "poet", "judge"} <= names
    assert client.models.retrieve("writer@1").id == "writer"


def test_errors_have_their_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.completions.create(model="nobody", prompt="a")
    assert unknown.value.code == "model_not_found"
    assert unknown.value.request_id
    with pytest.raises(openai.BadRequestError) as unsupported:
        client.completions.create(model="writer", prompt="a", logprobs=3)
    assert (unsupported.value.code, unsupported.value.param) == ("unsupported_parameter", "logprobs")

"""Requests that are wrong a thousand times cost one error; lists are counted before their items are looked at."""

from typing import Any

import pytest
from cdvft_server.config import ServeConfig
from cdvft_server.errors import ApiError
from cdvft_server.schemas import ChatRequest, ClassifyRequest, CompletionRequest
from pydantic import BaseModel, ValidationError

USER = {"role": "user", "content": "a"}
CONFIG = ServeConfig(max_messages=5, max_content_parts=6, max_stop_token_ids=3, max_prompts=4, max_classify_rows=7)


def parts(count: int) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": "a"}] * count}


def chat(messages: Any) -> tuple[type[BaseModel], dict[str, Any]]:
    return ChatRequest, {"model": "m", "messages": messages}


def complete(**fields: Any) -> tuple[type[BaseModel], dict[str, Any]]:
    return CompletionRequest, {"model": "m", "prompt": "a", **fields}


def classify(**fields: Any) -> tuple[type[BaseModel], dict[str, Any]]:
    return ClassifyRequest, {"model": "m", "input": "a", **fields}


@pytest.mark.parametrize(
    ("fits", "beyond", "message"),
    [
        (chat([USER] * 5), chat([USER] * 6), "6 messages, at most 5"),
        (chat([parts(3)] * 2), chat([parts(3), USER, parts(4)]), "7 content parts, at most 6"),
        (complete(stop_token_ids=[1] * 3), complete(stop_token_ids=[1] * 4), "4 stop_token_ids, at most 3"),
        (complete(prompt=["a"] * 4), complete(prompt=["a"] * 5), "5 prompts, at most 4"),
        (complete(prompt=[[1]] * 4), complete(prompt=[[]] * 5), "5 prompts, at most 4"),
        (complete(prompt=[1] * 99), complete(prompt=[1, [2]] * 3), "6 prompts, at most 4"),
        (classify(input=["a"] * 7), classify(input=[None] * 8), "8 inputs, at most 7"),
        (classify(model=["a"] * 7, input=["a"] * 7), classify(model=["a"] * 8), "8 models, at most 7"),
    ],
)
def test_counts_are_limited(
    fits: tuple[type[BaseModel], Any], beyond: tuple[type[BaseModel], Any], message: str
) -> None:
    model, body = fits
    assert model.model_validate(body, context=CONFIG)
    model, body = beyond
    with pytest.raises(ApiError, match=message) as caught:
        model.model_validate(body, context=CONFIG)
    assert caught.value.code == "too_large"


@pytest.mark.parametrize(
    ("model", "body", "most"),
    [
        (*chat([{}] * 1000), 2),
        (*complete(**{str(k): 0 for k in range(1000)}), 1),
        (*chat([{**USER, **{str(k): 0 for k in range(1000)}}]), 1),
        (*complete(stream=True, stream_options={str(k): 0 for k in range(1000)}), 1),
        (*complete(prompt=[["a"]] * 1000), 1),
        (*classify(input=[["a"]] * 1000), 1),
    ],
)
def test_what_is_wrong_a_thousand_times_is_told_once(model: type[BaseModel], body: Any, most: int) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(body)
    assert caught.value.error_count() <= most


def test_the_first_unknown_field_is_named() -> None:
    with pytest.raises(ValidationError) as caught:
        CompletionRequest.model_validate({"model": "m", "first": 1, "prompt": "a", **{str(k): 0 for k in range(99)}})
    assert [(error["type"], error["loc"]) for error in caught.value.errors()] == [("extra_forbidden", ("first",))]

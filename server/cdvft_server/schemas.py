"""What requests may say: strict types, known fields only.

How many items a list may have is asked of the server's ServeConfig, which is the validation's context, before the items
are looked at; without a context there is no limit.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    PlainValidator,
    StrictBool,
    ValidationInfo,
    model_validator,
)

from cdvft_server.errors import ApiError, invalid

__all__ = [
    "AdapterChange",
    "AliasBody",
    "ChatRequest",
    "ClassifyRequest",
    "CompletionRequest",
    "GenerationFields",
    "Message",
    "Strict",
]

MIN_SEED, MAX_SEED = -(2**63), 2**63 - 1


class Strict(BaseModel):
    """No type but its own, no field that is not known."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _name_one_unknown_field(cls, value: Any) -> Any:
        """Leave one of many unknown fields: each would become an error, of which only one is told."""
        if not isinstance(value, dict) or len(value) <= len(cls.model_fields) + 1:
            return value
        first = next(name for name in value if name not in cls.model_fields)
        return {name: value[name] for name in (*cls.model_fields, first) if name in value}


def _check_count(count: int, what: str, limit: str, field: str, info: ValidationInfo) -> None:
    """Raises ApiError 413 where the server's setting `limit` is less."""
    most = count if info.context is None else getattr(info.context, limit)
    if count > most:
        raise ApiError("too_large", f"{count} {what}, at most {most} are allowed", field)


def _one_or_more(value: Any) -> Any:
    """`stop` is a string or up to four."""
    if isinstance(value, str):
        value = [value]
    if value is not None and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        raise ValueError("must be a string or a list of strings")
    if value is not None and (len(value) > 4 or "" in value):
        raise ValueError("must be at most 4 strings, none of them empty")
    return value


def _prompts(value: Any, info: ValidationInfo) -> Any:
    """A string, strings, ids, or lists of ids; the message must not be pydantic's one per member of the union."""
    if isinstance(value, str) or _is_ids(value):
        value = [value]
    if isinstance(value, list):
        _check_count(len(value), "prompts", "max_prompts", "prompt", info)
    if not isinstance(value, list) or not value:
        raise ValueError(
            "must be a string, a list of strings, a list of token ids or a list of lists of them, not empty"
        )
    if not all(isinstance(item, str) for item in value) and not all(_is_ids(item) for item in value):
        raise ValueError("must hold only strings, or only lists of token ids")
    empty = next((i for i, item in enumerate(value) if not item), None)
    if empty is not None:
        raise ValueError(f"prompt {empty} is empty; give at least one character or token id")
    return value


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


def _stop_ids(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, list):
        _check_count(len(value), "stop_token_ids", "max_stop_token_ids", "stop_token_ids", info)
    return value


class StreamOptions(Strict):
    include_usage: bool | None = Field(None, description="One more chunk at the end, with the usage")


_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "logprobs": (False,),
    "top_logprobs": (),
    "echo": (False,),
    "best_of": (1,),
    "suffix": ("",),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "repetition_penalty": (1, 1.0),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
}
_UNSUPPORTED = "Not implemented: null or its neutral value only"


class GenerationFields(Strict):
    """The fields that completions and chat share."""

    model: str = Field(description="Served name of the base, or NAME, NAME@ALIAS, NAME@VERSION, NAME@sha256:PREFIX")
    max_tokens: int | None = Field(None, ge=1, description="Most tokens to generate")
    max_completion_tokens: int | None = Field(None, ge=1, description="The same as max_tokens")
    temperature: float | None = Field(None, ge=0, le=100, description="1 by default; 0 is greedy")
    top_p: float | None = Field(None, gt=0, le=1, description="1 by default")
    top_k: int | None = Field(None, ge=0, description="0 by default: off")
    n: int | None = Field(None, ge=1, le=16, description="Choices of each prompt, 1 by default")
    seed: int | None = Field(None, ge=MIN_SEED, le=MAX_SEED, description="Choice i of a prompt takes seed + i")
    stop: Annotated[str | list[str] | None, BeforeValidator(_one_or_more)] = Field(
        None, description="Up to 4 strings that end the text; they are not part of it"
    )
    stop_token_ids: Annotated[list[int] | None, BeforeValidator(_stop_ids)] = Field(
        None, description="Token ids that end the text, beside the base's own"
    )
    ignore_eos: bool | None = Field(None, description="Go on after the base's own end tokens")
    stream: bool | None = Field(None, description="Server-sent events, the last one `data: [DONE]`")
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="Accepted, unused")
    metadata: dict[str, Any] | None = Field(None, description="Accepted, unused")
    logprobs: Any = Field(None, description=_UNSUPPORTED)
    top_logprobs: Any = Field(None, description=_UNSUPPORTED)
    echo: Any = Field(None, description=_UNSUPPORTED)
    best_of: Any = Field(None, description=_UNSUPPORTED)
    suffix: Any = Field(None, description=_UNSUPPORTED)
    presence_penalty: Any = Field(None, description=_UNSUPPORTED)
    frequency_penalty: Any = Field(None, description=_UNSUPPORTED)
    repetition_penalty: Any = Field(None, description=_UNSUPPORTED)
    logit_bias: Any = Field(None, description=_UNSUPPORTED)
    tools: Any = Field(None, description=_UNSUPPORTED)
    tool_choice: Any = Field(None, description=_UNSUPPORTED)
    parallel_tool_calls: Any = Field(None, description=_UNSUPPORTED)
    response_format: Any = Field(None, description=_UNSUPPORTED)

    @model_validator(mode="after")
    def _refuse_unsupported(self) -> "GenerationFields":
        for name, neutral in _NEUTRAL.items():
            value = getattr(self, name)
            if value is not None and not any(type(value) is type(own) and value == own for own in neutral):
                allowed = " or ".join(["null", *(json.dumps(own) for own in neutral)])
                raise ApiError("unsupported_parameter", f"{name} is not implemented; leave it out ({allowed})", name)
        return self

    @model_validator(mode="after")
    def _check_together(self) -> "GenerationFields":
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise invalid("max_tokens and max_completion_tokens are the same field; give one of them", "max_tokens")
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options is only for stream: true", "stream_options")
        return self

    @property
    def most_tokens(self) -> int | None:
        """max_tokens under either name."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def stops(self) -> list[str]:
        return list(self.stop or ())

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class CompletionRequest(GenerationFields):
    prompt: Annotated[
        list[str] | list[list[int]],
        PlainValidator(_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
    ] = Field(description="Text gets the tokenizer's special tokens, ids are taken as they are")

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        return self.prompt


class TextPart(Strict):
    type: Literal["text"]
    text: str


class Message(Strict):
    """One message. What an assistant's message of this API has besides is taken at null."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None

    def plain(self) -> dict[str, str]:
        """As a template sees it: text parts joined, `name` only where it was given."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": text} | ({} if self.name is None else {"name": self.name})


def _messages(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, list):
        _check_count(len(value), "messages", "max_messages", "messages", info)
        contents = [message.get("content") for message in value if isinstance(message, dict)]
        parts = sum(len(content) for content in contents if isinstance(content, list))
        _check_count(parts, "content parts", "max_content_parts", "messages", info)
    return value


class ChatRequest(GenerationFields):
    messages: Annotated[list[Message], FailFast(), BeforeValidator(_messages)] = Field(min_length=1)


def _rows(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list):
        _check_count(len(value), "inputs", "max_classify_rows", "input", info)
    if not isinstance(value, list) or not value:
        raise ValueError("must be a string or a list of strings and [first, second] pairs, not empty")
    if not all(isinstance(item, str) or _is_pair(item) for item in value):
        raise ValueError("must hold only strings and [first, second] pairs of strings")
    empty = next((i for i, item in enumerate(value) if "" in ([item] if isinstance(item, str) else item)), None)
    if empty is not None:
        raise ValueError(f"input {empty} has an empty string; give at least one character")
    return value


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(item, str) for item in value)


def _models(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, list):
        _check_count(len(value), "models", "max_classify_rows", "model", info)
    if not isinstance(value, str) and not (
        isinstance(value, list) and value and all(isinstance(item, str) for item in value)
    ):
        raise ValueError("must be a string, or a list of strings as long as input")
    return value


class ClassifyRequest(Strict):
    model: Annotated[str | list[str], BeforeValidator(_models)] = Field(
        description="An adapter; or a list as long as input, one for each"
    )
    input: Annotated[str | list[str | list[str]], BeforeValidator(_rows)] = Field(
        description="A text, texts, or [first, second] pairs"
    )
    top_k: int | None = Field(None, ge=1, description="How many labels `scores` has; all by default")
    raw_scores: bool | None = Field(None, description="The head's outputs instead of probabilities")
    truncate: bool | None = Field(None, description="Cut an input that is too long instead of refusing it")

    @model_validator(mode="after")
    def _check_lengths(self) -> "ClassifyRequest":
        if isinstance(self.model, list) and len(self.model) != len(self.input):
            raise invalid(
                f"model has {len(self.model)} entries and input {len(self.input)}; they must be as many", "model"
            )
        return self

    @property
    def rows(self) -> list[tuple[str, str | None]]:
        """(first, second or None) of each input."""
        return [(item, None) if isinstance(item, str) else (item[0], item[1]) for item in self.input]

    @property
    def models(self) -> list[str]:
        """The model of each input."""
        return self.model if isinstance(self.model, list) else [self.model] * len(self.input)


class AdapterChange(Strict):
    pinned: StrictBool = Field(description="Whether what `latest` names is to stay on the device")


class AliasBody(Strict):
    version: int = Field(ge=1, description="The version that the alias is to name")

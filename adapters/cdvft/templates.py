"""Chat templates: Jinja as Hugging Face writes it, sandboxed. Knows no tokenizer and imports nothing heavy.

The sandbox keeps a template from reaching Python objects; it bounds neither time nor memory: the server renders in a
process that it can kill. `strftime_now` is left undefined, so that the same messages always give the same prompt
(templates that use it test for it first, or fail with a message).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NoReturn, TypeVar

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.ext import loopcontrols as LoopControls
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cdvft.errors import InvalidData

__all__ = ["PLAIN_TEMPLATE", "check_template", "render"]

T = TypeVar("T")

PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.role }}: {{ message.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
"""For bases and adapters without a template: the tokenizer's bos token, `role: content` lines, then `assistant:`."""


def check_template(source: str) -> None:
    """Raises InvalidData naming the line where the source is not a template.

    Parses only: compiling would evaluate constants such as `9 ** (9 ** 9)`, and nothing here bounds the time.
    """
    _guarded(_environment().parse, source)


def render(
    source: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    bos_token: str | None,
    eos_token: str | None,
    add_generation_prompt: bool = True,
) -> str:
    """The prompt for `messages` (each with `role` and `content`). Raises InvalidData when the template fails."""
    template = _compiled(source)
    try:
        return template.render(
            messages=[dict(message) for message in messages],
            bos_token=bos_token or "",
            eos_token=eos_token or "",
            add_generation_prompt=add_generation_prompt,
            tools=None,
            documents=None,
        )
    except Exception as error:  # a template is somebody's code: it can fail in any way
        raise InvalidData(f"the chat template cannot take these messages: {_reason(error)}") from None


@lru_cache(maxsize=64)
def _compiled(source: str) -> Template:
    return _guarded(_environment().from_string, source)


def _guarded(step: Callable[[str], T], source: str) -> T:
    try:
        return step(source)
    except TemplateSyntaxError as error:
        raise InvalidData(f"the chat template is not valid Jinja at line {error.lineno}: {_reason(error)}") from None
    except Exception as error:  # nested too deeply, too large: the parser's and the compiler's own limits
        raise InvalidData(f"the chat template cannot be compiled: {_reason(error)}") from None


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[LoopControls, _GenerationBlock]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    return environment


class _GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's text for some trainers; here it is its body."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own attribute)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _raise_exception(message: object) -> NoReturn:
    raise TemplateError(str(message))


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, sort_keys: bool = False) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, sort_keys=sort_keys)


def _reason(error: Exception) -> str:
    return f"{str(error)[:300] or 'no reason given'} ({type(error).__name__})"

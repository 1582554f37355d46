"""Requests' text to token ids, off the loop; an adapter's own template in a process of its own."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from cdvft.errors import InvalidData
from cdvft.formatting import Encoded, encode_chat, encode_classification, encode_prompt
from cdvft.templates import PLAIN_TEMPLATE, render

from cdvft_server.errors import invalid
from cdvft_server.service.parts import Parts
from cdvft_server.service.targets import Target

__all__ = ["Encoding"]

T = TypeVar("T")

SHORT = 1 << 10  # characters: less time than another thread's turn takes to come
OVERHEAD = 1 << 6  # of one text, in characters
LARGE = 1 << 16  # characters: tens of milliseconds


class Encoding:
    """Short texts at once, others in threads; large texts and templates in other ones than the rest."""

    def __init__(self, parts: Parts) -> None:
        backbone = parts.backbone
        self._tokenizer, self._templates, self._workers = backbone.tokenizer, parts.templates, parts.workers
        self._vocabulary = int(backbone.config.vocab_size)
        self._types = int(getattr(backbone.config, "type_vocab_size", 1) or 1)
        self._context = parts.engine.context_length  # also of a classify input, where its adapter says nothing
        encode_prompt(self._tokenizer, "a")  # a tokenizer drops the truncation it was saved with at its first use

    async def prompts(self, prompts: Sequence[str | list[int]]) -> list[list[int]]:
        """Ids of each prompt. Raises ApiError naming the one that is wrong."""
        run = self._run_for(sum(map(len, prompts)), len(prompts))
        return await run(lambda: [self._prompt(k, prompt) for k, prompt in enumerate(prompts)])

    async def chat(self, tenant: str, target: Target, messages: list[dict[str, str]]) -> list[int]:
        """Ids of this tenant's messages, rendered. Raises InvalidData where the template cannot take them."""
        bos, eos = self._tokenizer.bos_token, self._tokenizer.eos_token
        own = target.summary.get("template")
        if own is not None:
            text = await self._workers.templates.run_for(
                tenant, lambda: self._templates.render(own, messages, bos_token=bos, eos_token=eos)
            )
        else:
            run = self._run_for(sum(len(message["content"]) for message in messages), len(messages))
            source = self._tokenizer.chat_template or PLAIN_TEMPLATE
            text = await run(lambda: render(source, messages, bos_token=bos, eos_token=eos))
        return await self._run_for(len(text))(lambda: encode_chat(self._tokenizer, text, most=self._context))

    async def rows(self, targets: Sequence[Target], rows: Sequence[tuple[str, str | None]], cut: bool) -> list[Encoded]:
        """Each input as its own adapter takes it. Raises ApiError naming the input that is wrong."""
        run = self._run_for(sum(len(first) + len(second or "") for first, second in rows), len(rows))
        return await run(
            lambda: [self._row(k, t, *row, cut) for k, (t, row) in enumerate(zip(targets, rows, strict=True))]
        )

    def _run_for(self, size: int, count: int = 1) -> Callable[[Callable[[], T]], Awaitable[T]]:
        """Where to work on `count` texts of so many characters (or ids) together."""
        if size + count * OVERHEAD <= SHORT:
            return _at_once
        return self._workers.texts.run if size <= LARGE else self._workers.run_long

    def check_ids(self, ids: Sequence[int], what: str, param: str) -> None:
        """Raises ApiError for ids that the vocabulary does not have."""
        wrong = next((i for i in ids if not 0 <= i < self._vocabulary), None)
        if wrong is not None:
            shown = wrong if abs(wrong) < 2**63 else "an enormous number"
            raise invalid(f"{what} has the token id {shown}; ids are 0 to {self._vocabulary - 1}", param)

    def _prompt(self, index: int, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            try:
                return encode_prompt(self._tokenizer, prompt, most=self._context)
            except InvalidData as error:
                raise invalid(f"prompt {index}: {error}", "prompt") from None
        self.check_ids(prompt, f"prompt {index}", "prompt")
        return prompt

    def _row(self, index: int, target: Target, text: str, text2: str | None, cut: bool) -> Encoded:
        longest = min(target.summary.get("max_length") or self._context, self._context)
        try:
            return encode_classification(
                self._tokenizer, text, text2, max_length=longest, truncate=cut, type_vocab_size=self._types
            )
        except InvalidData as error:
            raise invalid(f"input {index}: {error}", "input") from None


async def _at_once(function: Callable[[], T]) -> T:
    return function()

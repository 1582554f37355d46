"""Completions: from prompts to engine requests, and from their events to text."""

from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from cdvft_server.engine.batch import Failed, Finished, Request, SamplingParams, Token
from cdvft_server.errors import ApiError, invalid
from cdvft_server.ids import new_id, new_seed
from cdvft_server.schemas import ChatRequest, CompletionRequest, GenerationFields
from cdvft_server.service.access import Caller
from cdvft_server.service.calls import Call
from cdvft_server.service.encoding import Encoding
from cdvft_server.service.faults import translate
from cdvft_server.service.flights import Flight, landing_on_error
from cdvft_server.service.limiter import Charge
from cdvft_server.service.merging import Merging, Mode, mode_of
from cdvft_server.service.metering import Part
from cdvft_server.service.parts import Parts
from cdvft_server.service.residency import Residency
from cdvft_server.service.targets import Target, Targets, generation_only
from cdvft_server.text import Detokenizer, StopStrings

__all__ = ["Generation", "Generator", "Piece"]

COMPLETION_TOKENS = 16  # OpenAI's default of max_tokens, less where the context ends before
CONTEXT_IDS = 6  # prompt ids that decide on a space at the beginning of a completion


@dataclass(frozen=True)
class Piece:
    """More text of one choice; `finish_reason` with its last."""

    index: int
    text: str
    finish_reason: str | None = None


class _Choice:
    """One sequence's text as it grows."""

    def __init__(self, index: int, tokenizer: Any, context: Sequence[int], stops: Sequence[str]) -> None:
        self.index = index
        self.done = False
        self._detokenizer = Detokenizer(tokenizer, context)
        self._stops = StopStrings(stops)
        self._pushed = False

    def push(self, token: int) -> Piece | None:
        """The piece that is certain now; the last one if a stop string is complete."""
        self._pushed = True
        text = self._stops.push(self._detokenizer.push(token))
        self.done = self._stops.stopped
        return Piece(self.index, text, "stop" if self.done else None) if text or self.done else None

    def finish(self, reason: str, ids: Sequence[int]) -> Piece:
        """The last piece. `ids`: all that were generated; where they were not pushed, it is the whole text."""
        self.done = True
        if not self._pushed:
            return Piece(self.index, self._detokenizer.whole(ids), reason)
        text = self._stops.push(self._detokenizer.flush())
        if self._stops.stopped:
            return Piece(self.index, text, "stop")
        return Piece(self.index, text + self._stops.flush(), reason)


class Generation:
    """One call's answer in the making. `close` must run: it cancels what has not ended."""

    def __init__(self, target: Target, mode: str, call: Call, choices: dict[str, _Choice], charge: Charge) -> None:
        self.headers = target.headers(mode)
        self._call, self._choices, self._charge = call, choices, charge

    def close(self) -> None:
        """It may run twice."""
        self._call.close()
        self._settle()

    def _settle(self) -> None:
        self._charge.settle(self.prompt_tokens + self.completion_tokens)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompts that went through the model up to now, each prompt once."""
        return self._call.use.prompt_tokens

    @property
    def completion_tokens(self) -> int:
        """Tokens that were generated up to now, without end tokens and without what came after a stop string."""
        return self._call.use.completion_tokens

    @property
    def num_choices(self) -> int:
        return len(self._choices)

    async def pieces(self) -> AsyncIterator[Piece]:
        """Text as it comes, each choice's last piece with its finish reason. Raises ApiError if the engine failed."""
        async for event in self._call.events():
            choice = self._choices[event.request_id]
            if isinstance(event, Failed):
                raise translate(event.error)
            if choice.done:
                continue
            if isinstance(event, Token):
                piece = choice.push(event.token)
                if choice.done:
                    self._call.cancel(event.request_id)
                if piece is not None:
                    yield piece
            elif isinstance(event, Finished):
                yield choice.finish(event.reason, self._call.use.parts[event.request_id].generated)
        self._settle()


@dataclass(frozen=True)
class _Plan:
    """Prompts as ids, each with its max_tokens; `context`: how many ids before an answer decide on its first space."""

    caller: Caller
    target: Target
    flights: list[Flight]
    prompts: list[list[int]]
    limits: list[int]
    context: int

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))


class Generator:
    """Starts generations."""

    def __init__(
        self, parts: Parts, targets: Targets, encoding: Encoding, residency: Residency, merging: Merging
    ) -> None:
        self._parts, self._config, self._engine, self._limiter = parts, parts.config, parts.engine, parts.limiter
        self._base, self._tokenizer = parts.base, parts.backbone.tokenizer
        self._targets, self._encoding, self._residency, self._merging = targets, encoding, residency, merging

    async def complete(self, caller: Caller, body: CompletionRequest, mode: Mode) -> Generation:
        """`mode`: how an adapter is to run. Raises ApiError and whatever `faults.translate` knows."""
        self._check_counts(len(body.prompts), body.n or 1)
        target, flights = await self._use(caller.tenant, body.model)
        with landing_on_error(flights):
            prompts = await self._encoding.prompts(body.prompts)
            limits = [self._limit(ids, body.most_tokens, COMPLETION_TOKENS) for ids in prompts]
            return await self._start(_Plan(caller, target, flights, prompts, limits, CONTEXT_IDS), body, mode)

    async def chat(self, caller: Caller, body: ChatRequest, mode: Mode) -> Generation:
        """As `complete`; the answer may fill the context."""
        self._check_counts(1, body.n or 1)
        target, flights = await self._use(caller.tenant, body.model)
        with landing_on_error(flights):
            ids = await self._encoding.chat(caller.tenant, target, [message.plain() for message in body.messages])
            limit = self._limit(ids, body.most_tokens, self._engine.context_length)
            return await self._start(_Plan(caller, target, flights, [ids], [limit], 0), body, mode)

    async def _use(self, tenant: str, model: str) -> tuple[Target, list[Flight]]:
        targets, flights = await self._targets.use(tenant, [model])
        with landing_on_error(flights):
            generation_only(targets[model], self._base)
        return targets[model], flights

    def _check_counts(self, prompts: int, n: int) -> None:
        if prompts > self._config.max_prompts:
            raise ApiError("too_large", f"{prompts} prompts, at most {self._config.max_prompts} are allowed", "prompt")
        if prompts * n > self._config.max_sequences:
            raise ApiError(
                "too_large", f"prompts x n is {prompts * n}, at most {self._config.max_sequences} are allowed", "n"
            )

    def _limit(self, ids: Sequence[int], asked: int | None, default: int) -> int:
        """max_tokens of one prompt. Raises ApiError where prompt and answer do not fit the context."""
        context = self._engine.context_length
        rest = context - len(ids)
        if rest < 1:
            raise invalid(
                f"the prompt has {len(ids)} tokens, the context {context} for prompt and answer; shorten the prompt"
            )
        if asked is not None and asked > rest:
            shown = asked if asked < 2**63 else "enormous"
            raise invalid(
                f"max_tokens {shown} and {len(ids)} prompt tokens exceed the context of {context}; "
                f"at most {rest} tokens are left",
                "max_tokens",
            )
        return asked or min(default, rest)

    async def _start(self, plan: _Plan, body: GenerationFields, mode: Mode) -> Generation:
        self._encoding.check_ids(body.stop_token_ids or (), "stop_token_ids", "stop_token_ids")
        whole = not body.stream and not body.stops
        call = Call(self._parts, plan.caller.tenant, plan.flights, whole=whole)
        call_id, n = new_id(), body.n or 1
        seed = new_seed() if body.seed is None else body.seed
        row = plan.target.row
        account = plan.target.account(plan.caller.tenant, self._base.digest)
        used, choices, merged = [], {}, None
        charge = self._limiter.reserve(plan.caller, plan.prompt_tokens + n * sum(plan.limits))
        with ExitStack() as leases, ExitStack() as shares:
            shares.enter_context(charge)
            lease = None if row is None else await self._residency.lease(row)
            if row is not None and lease is not None:
                leases.callback(lease.release)
                merged = await self._merging.use(row, lease, mode, n * plan.prompt_tokens, leases)
            for index, share in enumerate(self._residency.shares(lease, len(plan.prompts) * n, shares)):
                k = index // n
                request = Request(
                    f"{call_id}-{index}",
                    plan.prompts[k],
                    call.deliver,
                    lease=share,
                    sampling=_sampling(body, plan.limits[k], seed + index % n),
                    merged=self._merging.share(merged, shares),
                    tenant=plan.caller.tenant,
                    weight=plan.caller.weight,
                )
                used.append(Part(request, account, plan.target.public, counts_prompt=index % n == 0))
                tail = plan.prompts[k][-plan.context :] if plan.context else ()
                choices[request.id] = _Choice(index, self._tokenizer, tail, body.stops)
            call.submit(used)
            shares.pop_all()
        return Generation(plan.target, mode_of(used[0].request), call, choices, charge)


def _sampling(body: GenerationFields, max_tokens: int, seed: int) -> SamplingParams:
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=min(body.top_k or 0, 2**31 - 1),
        seed=seed if seed < 2**63 else seed - 2**64,
        stop_token_ids=frozenset(body.stop_token_ids or ()),
        ignore_eos=bool(body.ignore_eos),
    )

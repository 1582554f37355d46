"""A scheduler without a model: requests by size, steps as the engine takes them, and a clock that counts costs."""

from dataclasses import dataclass, field

from cdvft_server.engine.batch import Request, Sequence
from cdvft_server.engine.scheduler import Scheduler, Share

from tests.server.engine.harness import params

DECODE, PROMPT = 1.0, 0.25  # what a decode step and a prompt token cost


def sequence(tenant: str, prompt: int, answer: int = 0, weight: float = 1.0) -> Sequence:
    """`answer` 0: a classification."""
    sampling = params(answer) if answer else None
    return Sequence(Request("r", [5] * prompt, lambda _: None, sampling=sampling, tenant=tenant, weight=weight))


def cost(shares: list[Share], fixed: float) -> float:
    """`fixed`: what a batch costs beside its tokens."""
    return fixed + sum(DECODE if own.decodes else PROMPT * length for own, length in shares)


def advance(scheduler: Scheduler, shares: list[Share]) -> list[Sequence]:
    """What follows from a batch; those that ended."""
    ended = []
    for own, length in shares:
        own.computed += length
        sampling = own.request.sampling
        if own.remaining == 0 and sampling is not None:
            own.tokens.append(0)
        if own.generated == sampling.max_tokens if sampling else own.remaining == 0:
            ended.append(own)
    for own in ended:
        own.ended = True
        scheduler.remove(own)
    return ended


def check_counters(scheduler: Scheduler, longest: int) -> None:
    """The bound that the scheduler states: for every tenant that waits."""
    most = 2 * (longest if scheduler.kv is None else scheduler.kv.size) + scheduler.max_batch_tokens
    floor = scheduler.accounts.floor
    for own in scheduler.waiting:
        account = scheduler._account[own]
        assert floor - 1e-6 <= account.counter <= floor + most / account.weight + 1e-6


@dataclass
class Clock:
    """Runs a scheduler; in the middle of each batch, `layers` times, new requests may come in and interrupt it."""

    scheduler: Scheduler
    fixed: float = 16.0
    layers: int = 6
    now: float = 0.0
    arrivals: list[tuple[float, Sequence]] = field(default_factory=list)  # in order
    ended: dict[Sequence, float] = field(default_factory=dict)

    def step(self) -> list[Sequence]:
        self._let_in()
        shares = self.scheduler.schedule()
        assert shares
        whole, ended = cost(shares, self.fixed), []
        for _ in range(self.layers):
            self._let_in()
            between = self.scheduler.interrupt()
            if between:
                self.now += cost(between, self.fixed)
                ended += self._end(between)
            self.now += whole / self.layers
        return ended + self._end(shares)

    def _let_in(self) -> None:
        while self.arrivals and self.arrivals[0][0] <= self.now:
            self.scheduler.add(self.arrivals.pop(0)[1])

    def _end(self, shares: list[Share]) -> list[Sequence]:
        ended = advance(self.scheduler, shares)
        self.ended.update((own, self.now) for own in ended)
        return ended

"""Which tokens go into the next batch. Continuous batching under a token budget, fair to tenants; knows no tensors.

Order of service: decode steps (one token each), prompts that have begun, then new requests: always the head of the line
of the tenant with the least counter, within a tenant in strict arrival order. It waits until its KV span fits and
nobody overtakes it, so nothing starves. Encoder requests are whole segments: one that is longer than the budget has a
batch for itself. Where there is one tenant, this is plain arrival order.

Every tenant that waits has floor <= counter <= floor + (2 K + B) / weight. `floor` is the least counter of those that
wait, as of the last admission or arrival; K the arena's tokens (for encoders the longest input's): what a tenant can
still be charged for requests that it has in batches; B those of a batch. So two tenants that wait are never further
apart than (2 K + B) / the smaller weight. Of tenants with the same counter who has waited for longest goes first.

While there are tenants that use little beside others, they are served first, even in the middle of a batch, unless they
are B ahead of the others; and `Pace` keeps batches short for them. Both as far as its allowance lasts.
"""

from collections import deque
from collections.abc import Collection, Iterable
from itertools import groupby

from cdvft_server.engine.batch import Sequence
from cdvft_server.engine.counters import OUTPUT, PROMPT, Account, Accounts
from cdvft_server.engine.kv import SpanAllocator
from cdvft_server.engine.lines import Lines
from cdvft_server.engine.pace import CPU, Pace, Sizes

__all__ = ["Scheduler", "Share"]

Share = tuple[Sequence, int]  # a sequence and how many of its next tokens go into the batch

WINDOW = 16  # batches of work after which a tenant's use has faded to 1 / e, and it is forgotten
SMALL = 64  # requests that are remembered for that; more wait for their turn
KEPT_FREE = 64  # one part in so many of the arena is for tenants that use little: by default, one whole context


class Scheduler:
    """`kv` None: an encoder. `fair` False: all requests wait in one line. Used by the engine thread alone."""

    def __init__(
        self, kv: SpanAllocator | None, max_batch_tokens: int, *, fair: bool = True, sizes: Sizes = CPU
    ) -> None:
        self.kv = kv
        self.max_batch_tokens = max_batch_tokens
        self.fair = fair
        self.waiting = Lines()
        self.running: list[Sequence] = []
        self.accounts = Accounts(WINDOW * max_batch_tokens)
        self.pace = Pace(sizes)
        self.hurried: Collection[str] = ()  # for whom the last batch was made short: tenants that use little
        self._account: dict[Sequence, Account] = {}
        self._small: deque[Sequence] = deque(maxlen=SMALL)  # who may be served before its turn, by arrival

    @property
    def has_work(self) -> bool:
        return bool(self._account)

    def add(self, sequence: Sequence) -> None:
        request = sequence.request
        account = self.accounts.enter(request.tenant, request.weight) if self.fair else self.accounts.enter("", 1.0)
        self._account[sequence] = account
        if account not in self.waiting:
            if (head := self.waiting.first()) is not None:
                self.accounts.pass_time(self._account[head])
            self.accounts.lift(account)
        self.waiting.add(account, sequence)
        if self.accounts.uneven and self.accounts.is_light(account):
            self._small.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence wherever it is, and give its KV span back."""
        account = self._account.pop(sequence, None)
        if account is None:
            return
        if not self.waiting.remove(account, sequence):
            self.running.remove(sequence)
        if sequence.span is not None and self.kv is not None:
            self.kv.free(sequence.span)
            sequence.span = None
        self.accounts.leave(account)

    def schedule(self) -> list[Share]:
        """The next batch's shares: never empty while there is work; more than the budget only for a lone segment."""
        shares: list[Share] = []
        self.hurried = ()
        ready = sorted(self.running, key=lambda s: s.remaining > 1)
        if self.accounts.uneven:
            self._fill_uneven(shares, ready)
        else:
            self._fill(shares, ready, self.max_batch_tokens)
        return shares

    def interrupt(self) -> list[Share]:
        """New requests that may go in the middle of a batch, in one of their own: of tenants that use little."""
        shares: list[Share] = []
        if self._small and self.waiting and self.accounts.uneven and self.pace.may_hurry:
            calm = min(self.pace.sizes.calm, self.max_batch_tokens)
            left = self._fill(shares, (), calm, only_light=True)
            if shares:
                self.pace.ran(len(shares), calm - left, lost=1.0)
                self.hurried = self._tenants(shares)
        return shares

    def _fill_uneven(self, shares: list[Share], ready: list[Sequence]) -> None:
        """Those that use little first, and beside them few tokens of others as long as the allowance lasts."""
        decoding = sum(sequence.remaining == 1 for sequence in ready)
        budget = left = min(decoding + self.pace.sizes.calm, self.max_batch_tokens)
        present = set(map(self._account.__getitem__, ready))
        light = {account for account in present if self.accounts.is_light(account)}
        if self.pace.may_hurry:
            left = self._fill(shares, [s for s in ready if self._account[s] in light], budget, only_light=True)
            ready = [s for s in ready if self._account[s] not in light]
        few = min(left, self.pace.few(budget - left)) if shares else left
        first = len(shares)
        more = left - few + self._fill(shares, ready, few)
        wanted = min(left, sum(s.remaining for s in ready) + (left if self._may_admit(more) else 0))
        tokens, short = budget - more, few < wanted
        self.pace.ran(len(shares), tokens, lost=max(1 - tokens / (budget - left + wanted), 0.0) if short else 0.0)
        if short:
            self.hurried = self._tenants(shares[:first])

    def _fill(self, shares: list[Share], ready: Iterable[Sequence], budget: int, only_light: bool = False) -> int:
        """Running sequences in this order, then new ones; returns what is left of the budget."""
        for account, own in groupby(ready, self._account.__getitem__):
            charge = 0
            for sequence in own:
                length = min(sequence.remaining, budget)
                if length > 0:
                    shares.append((sequence, length))
                    budget -= length
                    charge += _charge(sequence, length)
            self.accounts.charge(account, charge)
        while (head := self._small_head() if only_light else self.waiting.first()) is not None:
            account = self._account[head]
            length = self._admissible(head, account, budget, alone=not shares)
            if not length:
                break
            if not only_light:
                self.accounts.pass_time(account)
            self._admit(head, account)
            shares.append((head, length))
            budget -= length
            self.accounts.charge(account, _charge(head, length))
        return budget

    def _small_head(self) -> Sequence | None:
        """The first to wait of those whose tenant uses little and is at most a batch ahead of the others."""
        first = self.waiting.first()
        while first is not None and self._small:
            own = self._small[0]
            account = self._account.get(own)
            waits = account is not None and self.waiting.head(account) is own
            if account is not None and waits and self._may_overtake(account, self._account[first]):
                return own
            self._small.popleft()
        return None

    def _tenants(self, shares: Iterable[Share]) -> Collection[str]:
        return {self._account[sequence].tenant for sequence, _ in shares}

    def _may_overtake(self, account: Account, least: Account) -> bool:
        ahead = (account.counter - least.counter) * account.weight  # the others' batch was charged as a whole
        return ahead <= self.max_batch_tokens and self.accounts.is_light(account)

    def _admit(self, head: Sequence, account: Account) -> None:
        self.waiting.remove(account, head)
        if self.kv is not None:
            head.span = self.kv.reserve(head.need, self._reach(head, account))
        self.running.append(head)

    def _may_admit(self, budget: int) -> bool:
        head = self.waiting.first()
        return head is not None and self._admissible(head, self._account[head], budget, alone=False) > 0

    def _admissible(self, sequence: Sequence, account: Account, budget: int, alone: bool) -> int:
        """How many tokens of a waiting sequence may go now; 0 if it must wait."""
        if self.kv is None:
            return sequence.remaining if alone or sequence.remaining <= budget else 0
        fits = len(self.running) < self.max_batch_tokens
        fits = fits and self.kv.can_reserve(sequence.need, self._reach(sequence, account))
        return max(min(sequence.remaining, budget), 0) if fits else 0

    def _reach(self, sequence: Sequence, account: Account) -> int:
        """The part of the arena that a sequence may have: all but the last part where that is kept for tenants
        that use little, unless its tenant is one, or it needs more."""
        size = self.kv.size if self.kv is not None else 0
        reach = size - size // KEPT_FREE
        if not self.accounts.uneven or sequence.need > reach or self.accounts.is_light(account):
            return size
        return reach


def _charge(sequence: Sequence, length: int) -> int:
    """Of a sequence's next tokens; the answer's first is generated as the prompt ends."""
    if sequence.decodes:
        return OUTPUT
    generates = sequence.request.sampling is not None and length == sequence.remaining
    return length * PROMPT + generates * OUTPUT

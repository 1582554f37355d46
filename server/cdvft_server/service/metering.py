"""What one API call uses of the engine: counted once for the answer's `usage`, the ledger and the metrics alike."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from cdvft_server.engine.batch import Event, Failed, Finished, Request, Scores, Token
from cdvft_server.store import Account, Amounts

__all__ = ["Part", "Use"]


@dataclass(slots=True)
class Part:
    """One engine request. `counts_prompt`: the choices of one prompt share it, it is the first one's. `generated`: the
    ids of its tokens."""

    request: Request
    account: Account
    public: bool = False
    counts_prompt: bool = True
    generated: list[int] = field(default_factory=list)
    outcome: str = "open"  # then ok, failed or cancelled
    enough: bool = False  # its text ended at a stop string: what the engine still sends is nobody's

    def take(self, event: Event) -> None:
        """Count an event, as its consumer gets it, or in place of a consumer that has left."""
        match event:
            case Token():
                if not self.enough:
                    self.generated.append(event.token)
            case Failed():
                self.outcome = "failed"
            case Finished(reason="cancelled"):
                self.outcome = "ok" if self.enough else "cancelled"
            case Finished() | Scores():
                self.outcome = "ok"

    @property
    def tokens(self) -> int:
        return len(self.generated)

    @property
    def prompt_tokens(self) -> int:
        """What went through the model."""
        if not self.counts_prompt:
            return 0
        whole = self.tokens or self.outcome == "ok"
        return len(self.request.ids) if whole else self.request.times.prefilled

    @property
    def settled(self) -> bool:
        """Nothing of it changes any more."""
        return self.outcome != "open" and self.request.times.settled


class Use:
    """A call's parts. `draw` gives what was used since it was asked last."""

    def __init__(self, parts: Iterable[Part]) -> None:
        self.parts = {part.request.id: part for part in parts}
        self._drawn: dict[Account, Amounts] = {}

    @property
    def prompt_tokens(self) -> int:
        return sum(part.prompt_tokens for part in self.parts.values())

    @property
    def completion_tokens(self) -> int:
        return sum(part.tokens for part in self.parts.values())

    @property
    def settled(self) -> bool:
        return all(part.settled for part in self.parts.values())

    def draw(self) -> dict[Account, Amounts]:
        whole = self._amounts()
        more = {account: amounts - self._drawn.get(account, Amounts()) for account, amounts in whole.items()}
        self._drawn = whole
        return {account: amounts for account, amounts in more.items() if amounts}

    def _amounts(self) -> dict[Account, Amounts]:
        """By account: one request for each, which failed if one of its parts did."""
        found: dict[Account, Amounts] = {}
        for part in self.parts.values():
            own = found.setdefault(part.account, Amounts(requests=1))
            own.prompt_tokens += part.prompt_tokens
            own.completion_tokens += part.tokens
            own.seconds += part.request.times.seconds
            own.failed |= part.outcome == "failed"
            own.cancelled |= part.outcome == "cancelled"
        for amounts in found.values():
            amounts.cancelled &= ~amounts.failed
        return found

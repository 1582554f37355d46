"""Who was served how much: a virtual token counter for each tenant (Sheng et al. 2023, "Fairness in Serving Large
Language Models"). Knows no requests and no batches; the engine thread's own.

A counter is what its tenant was charged over its weight: PROMPT for each prompt token and OUTPUT for each token that is
generated, as they go into a batch. So there is nothing to give back for a request that fails or is cancelled. The
tenant with the least counter goes first. `floor` (virtual time) is the least counter of those that wait, or waited
last: who begins to wait starts there at least, so nobody saves up.
"""

from collections import OrderedDict
from dataclasses import dataclass
from math import exp, expm1

__all__ = ["OUTPUT", "PROMPT", "Account", "Accounts"]

PROMPT, OUTPUT = 1, 2
LIGHT = 0.5  # of an equal share (by weights) of the recent work, at most


@dataclass(eq=False, slots=True)
class Account:
    """`live` requests wait or run; `recent` is what it was charged, fading with the work of all, as of `faded`."""

    tenant: str
    weight: float
    counter: float
    live: int = 0
    recent: float = 0.0
    faded: float = 0.0


class Accounts:
    """Tenants with requests, and those that had some within the last `window` tokens of everybody's work; others are
    forgotten, and start at `floor` when they come back."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.floor = 0.0
        self.weights = 0.0  # of all accounts
        self._work = 0.0  # charged to all; each request that ends counts as one more, so that time passes
        self._uneven_until = 0.0  # as `_work`
        self._accounts: dict[str, Account] = {}
        self._idle: OrderedDict[Account, float] = OrderedDict()  # -> work as it became idle

    def __len__(self) -> int:
        return len(self._accounts)

    @property
    def uneven(self) -> bool:
        """Whether, beside others, a tenant that uses little asked for something, now or within the last window."""
        return self._work < self._uneven_until

    def enter(self, tenant: str, weight: float) -> Account:
        """One more request of this tenant; its latest weight holds."""
        account = self._accounts.get(tenant)
        if account is None:
            account = self._accounts[tenant] = Account(tenant, weight, self.floor, faded=self._work)
            self.weights += weight
        elif account.weight != weight:
            self.weights += weight - account.weight
            account.weight = weight
        if account.live == 0:
            self._idle.pop(account, None)
        account.live += 1
        if len(self._accounts) > 1 and self.is_light(account):
            self._uneven_until = self._work + self.window
        return account

    def lift(self, account: Account) -> None:
        """It begins to wait: what it did not use while it did not wait is gone."""
        account.counter = max(account.counter, self.floor)

    def leave(self, account: Account) -> None:
        """One request less."""
        account.live -= 1
        self._work += 1
        if account.live == 0:
            self._idle[account] = self._work
        self._forget()

    def pass_time(self, least: Account) -> None:
        """Of all that wait, this one has the least counter."""
        self.floor = max(self.floor, least.counter)

    def charge(self, account: Account, tokens: float) -> None:
        """`tokens` by PROMPT and OUTPUT."""
        account.counter += tokens / account.weight
        account.recent = self._recent(account) + tokens
        account.faded = self._work
        self._work += tokens

    def is_light(self, account: Account) -> bool:
        """Whether it used at most half of an equal share of the last `window` tokens or so."""
        everybody = self.window * -expm1(-self._work / self.window)
        return self._recent(account) * self.weights <= LIGHT * account.weight * everybody

    def _recent(self, account: Account) -> float:
        return account.recent * exp((account.faded - self._work) / self.window)

    def _forget(self) -> None:
        """Look at the two that have been idle for longest: more than come in by one request."""
        for _ in range(min(2, len(self._idle))):
            account, since = next(iter(self._idle.items()))
            if self._work - since <= self.window:
                return
            del self._idle[account], self._accounts[account.tenant]
            self.weights -= account.weight

"""How large a batch may be where a tenant that uses little is beside others; knows no sequences.

A request that arrives waits for the batch that runs, so batches are kept *calm*: no more prompt tokens than it takes to
make the fixed cost of a forward pass small. And while a tenant that uses little has a request in the batch, others add
only a *few* tokens: its steps stay about as short as on an idle server. Such short batches are paid for out of an
allowance, a fixed share of all work, so that they cost no more throughput than that,
as far as a forward pass's fixed cost is no more than `Sizes.fixed`.
"""

from dataclasses import dataclass

__all__ = ["ACCELERATOR", "CPU", "Pace", "Sizes"]

ALLOWANCE = 1 / 16  # of the work, as `Sizes` has it, may be lost to short batches
PROMPT_COST = 0.25  # of a decode step's
SAVED = 64  # short batches that may follow on each other after a time without any


@dataclass(frozen=True)
class Sizes:
    """In tokens. `calm`: from here on a token costs about what it costs in the largest batch. `few`: as many more
    decode steps do not double a forward pass of one. `fixed`: what a forward pass costs beside its tokens."""

    calm: int
    few: int
    fixed: int


CPU = Sizes(calm=1024, few=16, fixed=24)
ACCELERATOR = Sizes(calm=1024, few=64, fixed=128)


class Pace:
    """The allowance, in decode steps: every batch adds to it, a short one costs up to `sizes.fixed`."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self._saved = float(SAVED * sizes.fixed)

    @property
    def may_hurry(self) -> bool:
        """Whether the next batch may be a short one."""
        return self._saved >= self.sizes.fixed

    def few(self, light: int) -> int:
        """How many tokens may go beside `light` ones of tenants that use little."""
        return self.sizes.few + light // 4

    def ran(self, segments: int, tokens: int, lost: float) -> None:
        """A batch was made; `lost`: the part of its tokens that had to stay out because it is a short one."""
        work = segments + (tokens - segments) * PROMPT_COST + self.sizes.fixed
        self._saved = min(self._saved + work * ALLOWANCE - lost * self.sizes.fixed, SAVED * self.sizes.fixed)

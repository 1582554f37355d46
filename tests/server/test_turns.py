"""Turns on the loop: a share of each pass for each tenant, all once and in order, others slowed but never held."""

import asyncio
from collections import deque
from collections.abc import Callable, Collection
from typing import Any

from cdvft_server.service.turns import GAP, LITTLE, MOST_SLOWED, PASS, SHARE, SLOWED, Turns
from hypothesis import given
from hypothesis import strategies as st


class Loop:
    """A loop whose passes and time are the test's."""

    def __init__(self) -> None:
        self.now = 0.0
        self._soon: deque[asyncio.Handle] = deque()
        self._later: list[tuple[float, asyncio.Handle]] = []

    def time(self) -> float:
        return self.now

    def call_soon(self, function: Callable[[], None]) -> asyncio.Handle:
        self._soon.append(asyncio.Handle(function, (), self))  # type: ignore[arg-type]
        return self._soon[-1]

    def call_at(self, when: float, function: Callable[[], None]) -> asyncio.Handle:
        handle = asyncio.Handle(function, (), self)  # type: ignore[arg-type]
        self._later.append((when, handle))
        return handle

    def get_debug(self) -> bool:
        return False

    @property
    def idle(self) -> bool:
        return not self._soon and all(handle.cancelled() for _, handle in self._later)

    def run_pass(self, seconds: float = 0.0) -> None:
        self.now += seconds
        due = [handle for when, handle in self._later if when <= self.now]
        self._later = [(when, handle) for when, handle in self._later if when > self.now]
        ready, self._soon = [*self._soon, *due], deque()
        for handle in ready:
            if not handle.cancelled():
                handle._run()


def turns_on(loop: Any, hurried: Callable[[], Collection[str]] = tuple, fair: bool = True) -> Turns:
    return Turns(loop, hurried, fair=fair)


class Work:
    """Names in the order in which they were done."""

    def __init__(self, turns: Turns) -> None:
        self._turns, self.done = turns, list[str]()

    def add(self, tenant: str, *names: str, cost: float = SHARE) -> None:
        for name in names:
            self._turns.call(tenant, lambda name=name: self.done.append(name), cost)  # type: ignore[misc]

    def take(self) -> list[str]:
        done, self.done = self.done, []
        return done


def test_a_pass_has_one_beginning_of_each_tenant() -> None:
    loop = Loop()
    work = Work(turns_on(loop))
    work.add("flood", "f0", "f1", "f2", "f3")
    work.add("small", "s0")
    assert work.take() == ["f0", "s0"]
    loop.run_pass()
    work.add("small", "s1")
    assert work.take() == ["f1", "s1"]
    loop.run_pass()
    assert work.take() == ["f2"]
    loop.run_pass()
    assert (work.take(), loop.idle) == (["f3"], True)
    loop.run_pass(PASS)
    work.add("flood", "f4")
    assert (work.take(), loop.idle) == (["f4"], True)


def test_tokens_are_a_little_each() -> None:
    loop = Loop()
    work = Work(turns_on(loop))
    names = [f"t{k}" for k in range(20)]
    work.add("flood", *names, cost=LITTLE)
    assert work.take() == names[:8]
    loop.run_pass()
    assert work.take() == names[8:16]
    loop.run_pass()
    assert work.take() == names[16:]


def test_unfair_is_at_once() -> None:
    loop = Loop()
    work = Work(turns_on(loop, lambda: ["small"], fair=False))
    work.add("flood", "f0", "f1", "f2")
    assert (work.take(), loop.idle) == (["f0", "f1", "f2"], True)


def test_while_the_engine_hurries_others_begin_once_a_gap() -> None:
    loop, hurried = Loop(), ["small"]
    work = Work(turns_on(loop, lambda: hurried))
    work.add("flood", "f0", "f1", "f2")
    work.add("other", "o0")
    work.add("small", "s0", "s1", "s2")
    assert work.take() == ["f0", "s0", "s1", "s2"]
    for _ in range(5):
        loop.run_pass(GAP / 8)
    work.add("small", "s3")
    assert work.take() == ["s3"]
    loop.run_pass(GAP)
    assert work.take() == ["f1"]  # and "other" at the next gap's end: first come, first served
    hurried.clear()
    work.add("flood", "f3")  # nobody waits for the rest of the gap any more
    loop.run_pass()
    loop.run_pass()
    loop.run_pass()
    assert sorted(work.take()) == ["f2", "f3", "o0"]


def test_nobody_is_slowed_for_more_than_a_part_of_the_time() -> None:
    """Where the engine always hurries for somebody."""
    loop = Loop()
    work = Work(turns_on(loop, lambda: ["small"]))
    seconds, step = 20.0, 0.001
    while loop.now < seconds:
        if not work._turns._lines.get("flood"):
            work.add("flood", "f", "f")
        loop.run_pass(step)
    gaps = (MOST_SLOWED + SLOWED * seconds) / GAP
    assert len(work.done) >= (seconds / step - gaps * GAP / step) * 0.9


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.integers(0, 3), st.sampled_from(["", "a", "bc"]))))
def test_everything_is_done_once_and_in_its_tenants_order(steps: list[tuple[str, bool, int, str]]) -> None:
    loop, hurried = Loop(), [""]
    work, expected = Work(turns_on(loop, lambda: set(hurried[0]))), dict[str, list[str]]()
    for number, (tenant, little, passes, hurry) in enumerate(steps):
        hurried[0] = hurry
        expected.setdefault(tenant, []).append(f"{tenant}{number}")
        work.add(tenant, f"{tenant}{number}", cost=LITTLE if little else SHARE)
        for _ in range(passes):
            loop.run_pass(GAP / 4)
    for _ in range(8 * len(steps) + 8):
        loop.run_pass(GAP / 4)
    assert loop.idle
    assert {tenant: [n for n in work.done if n[0] == tenant] for tenant in expected} == expected
    assert len(work.done) == len(steps)


def test_who_gives_up_waiting_leaves_the_line() -> None:
    async def scenario() -> None:
        turns = Turns(asyncio.get_running_loop(), tuple)
        began = list[int]()

        async def request(number: int) -> None:
            await turns.mine("flood")
            began.append(number)

        tasks = [asyncio.create_task(request(k)) for k in range(6)]
        await asyncio.sleep(0)
        tasks[3].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert began == [0, 1, 2, 4, 5]

    asyncio.run(scenario())

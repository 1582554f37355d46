"""Rates by a clock of the test's own: nothing here waits."""

from contextlib import ExitStack

import pytest
from cdvft_server.errors import ApiError
from cdvft_server.service.access import Caller
from cdvft_server.service.limiter import KEPT, Limiter
from cdvft_server.store import TenantLimits


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(clock: Clock) -> Limiter:
    return Limiter(clock)


def caller(tenant: str = "acme", **limits: int) -> Caller:
    return Caller(tenant, frozenset({"infer"}), limits=TenantLimits(**limits))


def ask(limiter: Limiter, who: Caller) -> None:
    with limiter.enter(who):
        pass


def wait_of(error: pytest.ExceptionInfo[ApiError]) -> int:
    assert (error.value.code, error.value.status_code) == ("rate_limited", 429)
    assert error.value.headers is not None
    return int(error.value.headers["retry-after"])


def test_a_minutes_requests_at_once_and_then_at_the_rate(limiter: Limiter, clock: Clock) -> None:
    who = caller(requests_per_minute=3)
    for left in (2, 1, 0):
        ask(limiter, who)
        assert limiter.headers(who)["x-ratelimit-remaining-requests"] == str(left)
    with pytest.raises(ApiError, match="3 requests per minute; try again in 20 s") as refused:
        ask(limiter, who)
    clock.now += wait_of(refused)
    ask(limiter, who)
    with pytest.raises(ApiError):
        ask(limiter, who)
    clock.now += 1000
    for _ in range(3):
        ask(limiter, who)
    with pytest.raises(ApiError):
        ask(limiter, who)


def test_the_headers_are_openais(limiter: Limiter, clock: Clock) -> None:
    who = caller(requests_per_minute=60, tokens_per_minute=600)
    assert limiter.headers(who) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "60",
        "x-ratelimit-reset-requests": "0ms",
        "x-ratelimit-limit-tokens": "600",
        "x-ratelimit-remaining-tokens": "600",
        "x-ratelimit-reset-tokens": "0ms",
    }
    ask(limiter, who)
    limiter.reserve(who, 600).settle(600)
    clock.now += 0.75
    told = limiter.headers(who)
    assert (told["x-ratelimit-remaining-requests"], told["x-ratelimit-reset-requests"]) == ("59", "250ms")
    assert (told["x-ratelimit-remaining-tokens"], told["x-ratelimit-reset-tokens"]) == ("7", "1m0s")
    assert limiter.headers(caller()) == {}


def test_tokens_are_reserved_and_corrected(limiter: Limiter, clock: Clock) -> None:
    who = caller(tokens_per_minute=60)
    charge = limiter.reserve(who, 50)
    with pytest.raises(ApiError, match="10 of its 60 tokens per minute left, the request may take 20") as refused:
        limiter.reserve(who, 20)
    assert wait_of(refused) == 10
    charge.settle(5)
    charge.settle(50)  # it was settled
    assert limiter.headers(who)["x-ratelimit-remaining-tokens"] == "55"
    with limiter.reserve(who, 55):
        assert limiter.headers(who)["x-ratelimit-remaining-tokens"] == "0"
    assert limiter.headers(who)["x-ratelimit-remaining-tokens"] == "55"  # it came to nothing


def test_what_is_larger_than_a_minute_waits_for_a_whole_one_and_owes_the_rest(limiter: Limiter, clock: Clock) -> None:
    who = caller(tokens_per_minute=60)
    limiter.reserve(who, 1).settle(1)
    with pytest.raises(ApiError) as refused:
        limiter.reserve(who, 1000)
    clock.now += wait_of(refused)
    limiter.reserve(who, 1000).settle(120)
    with pytest.raises(ApiError) as refused:
        limiter.reserve(who, 1)
    assert wait_of(refused) == 61


def test_requests_at_a_time(limiter: Limiter) -> None:
    who = caller(max_concurrent=2)
    with ExitStack() as running:
        running.enter_context(limiter.enter(who))
        with limiter.enter(who), pytest.raises(ApiError, match="2 requests of tenant acme run already") as refused:
            limiter.enter(who)
        assert wait_of(refused) == 1
        ask(limiter, who)
    ask(limiter, who)


def test_tenants_do_not_share_and_changed_limits_hold_at_once(limiter: Limiter) -> None:
    ask(limiter, caller(requests_per_minute=1))
    ask(limiter, caller("other", requests_per_minute=1))
    with pytest.raises(ApiError):
        ask(limiter, caller(requests_per_minute=1))
    ask(limiter, caller(requests_per_minute=2))  # one of two was used
    with pytest.raises(ApiError):
        ask(limiter, caller(requests_per_minute=2))
    ask(limiter, caller())


def test_nothing_is_kept_of_tenants_with_full_buckets(limiter: Limiter, clock: Clock) -> None:
    running = limiter.enter(caller("running"))
    running.__enter__()
    for number in range(20 * KEPT):
        ask(limiter, caller(f"t{number}", requests_per_minute=60))
        clock.now += 1
    assert len(limiter._tenants) <= 2 * KEPT
    assert "running" in limiter._tenants
    running.__exit__(None, None, None)

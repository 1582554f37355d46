"""The usage ledger in the store: additive, exactly once, in groups and pages."""

import random
import threading
from collections import Counter
from collections.abc import Iterator

import pytest
from cdvft_server.store import Account, Amounts, Store, UsageQuery, UsageStore

from tests.server.store_maker import BASE, digest_of, put

HOUR, DAY = 3600, 86400
NOON = 1_800_000_000 // DAY * DAY + 12 * HOUR


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    opened = Store.open(store_url)
    yield opened
    opened.close()


def account(tenant: str = "t", adapter: str = "a", version: int = 1) -> Account:
    return Account(tenant, adapter, version, digest_of(f"{adapter}{version}"), BASE)


def amounts(n: int) -> Amounts:
    return Amounts(n, n % 2, n % 3, 10 * n, 20 * n, n / 4)


def test_amounts_are_added(store: Store) -> None:
    for batch, n in enumerate((1, 2, 3), 1):
        store.usage.add("w", batch, {(NOON, account()): amounts(n)})
    (row,) = store.usage.report(UsageQuery("t"), 10)
    assert (row.adapter, row.version, row.start, row.tenant) == ("a", None, None, None)
    assert row.amounts == Amounts(6, 2, 3, 60, 120, 1.5)


def test_a_batch_that_is_sent_again_changes_nothing(store: Store) -> None:
    """Nobody knows whether a write arrived whose answer did not: it is sent again."""
    for writer, batch in (("w", 1), ("w", 1), ("v", 1), ("w", 2), ("w", 1), ("w", 2), ("v", 1)):
        store.usage.add(writer, batch, {(NOON, account()): amounts(1)})
    (row,) = store.usage.report(UsageQuery("t"), 10)
    assert row.amounts.requests == 3


def test_writers_of_the_same_rows(store: Store) -> None:
    """Several servers, each with its own connection, add to the same rows in any order."""
    accounts = [account(adapter=name) for name in "abcdef"]

    def write(writer: str) -> None:
        chance = random.Random(writer)
        for batch in range(1, 11):
            some = chance.sample(accounts, 4)
            store.usage.add(writer, batch, {(NOON, own): Amounts(requests=1) for own in some})

    threads = [threading.Thread(target=write, args=(f"w{k}",)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = store.usage.report(UsageQuery("t"), 100)
    assert sum(row.amounts.requests for row in rows) == 4 * 10 * 4


def filled(usage: UsageStore) -> dict[tuple[int, Account], int]:
    """Requests of each row: two tenants, three names, two versions, over three days."""
    used = {}
    for k in range(0, 72, 5):
        for tenant in ("t", "u"):
            for adapter in ("a", "b", "o/c"):
                for version in (1, 2):
                    used[NOON + k * HOUR, account(tenant, adapter, version)] = len(used) + 1
    usage.add("w", 1, {key: Amounts(requests=n) for key, n in used.items()})
    return used


GROUPS = [
    ["adapter"], ["version"], ["tenant"], ["hour"], ["day"], ["day", "adapter"], ["hour", "version", "tenant"],
    ["version", "adapter"], ["tenant", "day"],
]  # fmt: skip


def test_groups_and_pages(store: Store) -> None:
    used = filled(store.usage)
    for group_by in GROUPS:
        for tenant in ("t", None):
            check_groups(store.usage, used, UsageQuery(tenant, group_by))


def check_groups(usage: UsageStore, used: dict[tuple[int, Account], int], query: UsageQuery) -> None:
    """In pages of seven: every group once, with the sum of its rows, newest first."""
    expected: Counter[tuple] = Counter()
    for (hour, own), n in used.items():
        if query.tenant in (None, own.tenant):
            start = hour if "hour" in query.group_by else hour // DAY * DAY
            values = {"start": start, "tenant": own.tenant, "adapter": own.adapter, "version": own.version}
            expected[tuple({**values, "digest": own.digest}[key] for key in query.keys)] += n
    found = []
    after = None
    while rows := usage.report(query, 7, after):
        found += rows
        after = [getattr(rows[-1], key) for key in query.keys]
    keys = [tuple(getattr(row, key) for key in query.keys) for row in found]
    assert len(set(keys)) == len(keys)
    assert {key: row.amounts.requests for key, row in zip(keys, found, strict=True)} == expected
    if "start" in query.keys:
        starts = [row.start for row in found]
        assert starts == sorted(starts, reverse=True)  # type: ignore[type-var]


def test_ranges_have_whole_hours(store: Store) -> None:
    used = filled(store.usage)
    for start, end in (
        (NOON, NOON + 5 * HOUR),
        (NOON + 1, NOON + 5 * HOUR + 1),
        (None, NOON + 1),
        (NOON + 8 * HOUR, None),
    ):
        rows = store.usage.report(UsageQuery(None, ["hour"], start, end), 1000)
        hours = {hour for hour, _ in used}
        assert {row.start for row in rows} == {
            hour for hour in hours if (start is None or hour + HOUR > start) and (end is None or hour < end)
        }
    rows = store.usage.report(UsageQuery("t", ["hour", "adapter"], adapter="o/c"), 1000)
    assert {row.adapter for row in rows} == {"o/c"}


def test_what_is_deleted_stays_under_its_name(store: Store) -> None:
    row = put(store, "poet", "one", "t")
    store.usage.add("w", 1, {(NOON, Account("t", "poet", row.version, row.digest, BASE)): amounts(1)})
    store.delete("t", "poet", None, BASE)
    assert [row.adapter for row in store.usage.report(UsageQuery("t"), 10)] == ["poet"]

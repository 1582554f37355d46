"""What servers on one database tell each other through it."""

from collections.abc import Iterator

import pytest
from cdvft_server.store import GoneVersion, News, Replica, Store

from tests.server.postgres import execute
from tests.server.store_maker import BASE, ME, OTHER_BASE, put


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdvft_server.store.replicas.DEAD_SECONDS", 600)  # however slow this machine is


@pytest.fixture
def stores(store_url: str) -> Iterator[list[Store]]:
    opened = [Store.open(store_url) for _ in range(2)]
    yield opened
    for store in opened:
        store.close()


def join(store: Store, base: str = BASE) -> Replica:
    replica = store.as_replica(base)
    replica.beat()
    return replica


def test_a_delete_is_told_to_the_others_and_waits_for_them(stores: list[Store]) -> None:
    mine, yours = (join(store) for store in stores)
    row = put(stores[0], "poet", "one")
    put(stores[0], "poet", "two")
    deleted = stores[0].delete(ME, "poet", 1, BASE)
    [news] = yours.news()
    gone = [GoneVersion(row.id, row.adapter_id, row.digest)]
    assert news == News(deleted.news_id, "deleted", ME, "poet", gone)
    assert mine.news() == yours.news() == []  # who did it knows; and nobody hears it twice
    assert mine.waiting_for(news.id) == 1
    for _ in range(2):
        yours.acknowledge([news.id, 10**6])  # one that was cleared away does no harm
    assert mine.waiting_for(news.id) == 0
    stores[1].delete(ME, "poet", None, BASE)
    assert [(own.kind, own.name) for own in mine.news()] == [("deleted", "poet")]


def test_a_server_of_another_base_or_one_that_came_later_is_not_waited_for(stores: list[Store]) -> None:
    mine, other = join(stores[0]), join(stores[1], OTHER_BASE)
    put(stores[0], "poet", "one")
    deleted = stores[0].delete(ME, "poet", None, BASE)
    late = join(stores[1])
    assert other.news() == late.news() == []
    assert mine.waiting_for(deleted.news_id) == 0


def test_who_died_or_left_is_not_waited_for(stores: list[Store], store_url: str) -> None:
    mine, dead, left = join(stores[0]), join(stores[1]), join(stores[1])
    put(stores[0], "poet", "one")
    deleted = stores[0].delete(ME, "poet", None, BASE)
    assert mine.waiting_for(deleted.news_id) == 2
    left.leave()
    left.leave()
    assert mine.waiting_for(deleted.news_id) == 1
    execute(store_url, f"UPDATE replicas SET seen_at = seen_at - 601 WHERE id = '{dead.id}'")
    assert mine.waiting_for(deleted.news_id) == 0
    dead.beat()  # it was only away
    assert mine.waiting_for(deleted.news_id) == 1
    assert [news.id for news in dead.news()] == [deleted.news_id]


def test_pins_are_told_with_what_moves_them(stores: list[Store]) -> None:
    yours = join(stores[1])
    put(stores[0], "poet", "one")
    put(stores[0], "poet", "two")
    assert yours.news() == []  # not pinned: a lookup finds it
    for step in (
        lambda: stores[0].set_pinned(ME, "poet", True, BASE),
        lambda: put(stores[0], "poet", "three"),
        lambda: stores[0].set_alias(ME, "poet", "latest", 1, BASE),
        lambda: stores[0].set_pinned(ME, "poet", False, BASE),
    ):
        step()
        assert [(news.kind, news.tenant, news.name, news.gone) for news in yours.news()] == [("pinned", ME, "poet", [])]
    stores[0].set_pinned(ME, "poet", True, BASE)
    stores[0].delete(ME, "poet", 1, BASE)
    assert [news.kind for news in yours.news()] == ["pinned", "deleted", "pinned"]


def test_what_is_long_over_is_cleared_away(stores: list[Store], store_url: str) -> None:
    mine, yours = (join(store) for store in stores)
    for text in ("one", "two"):
        put(stores[0], "poet", text)
        stores[0].delete(ME, "poet", None, BASE)
    first, second = yours.news()
    yours.acknowledge([first.id, second.id])
    execute(store_url, f"UPDATE news SET at = at - 3601 WHERE id = {first.id}")
    execute(store_url, f"UPDATE replicas SET seen_at = seen_at - 3601 WHERE id = '{yours.id}'")
    third = join(stores[1])
    assert execute(store_url, "SELECT id FROM news") == [(second.id,)]
    assert execute(store_url, "SELECT news_id FROM receipts") == [(second.id,)]
    assert sorted(execute(store_url, "SELECT id FROM replicas")) == sorted([(mine.id,), (third.id,)])
    yours.beat()  # and may come back
    assert len(execute(store_url, "SELECT id FROM replicas")) == 3


def test_hits_of_all_add_up(stores: list[Store]) -> None:
    row = put(stores[0], "poet", "one")
    for number, store in enumerate(stores):
        store.count_hits({row.id: 2}, 1000 - number)
    found = stores[0].get(ME, "poet", BASE)
    assert (found.hits, found.last_used) == (4, 1000)

"""Tenants, keys and quotas in the store."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cdvft_server.exceptions import Conflict, NotFound, QuotaExceeded, UnknownKey, UnknownTenant
from cdvft_server.expiry import parse_expiry
from cdvft_server.store import Store, TenantLimits, hash_of, lookup_of

from tests.server.store_maker import BASE, CONFIG, ME, OTHER_BASE, new, put, url_of


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(url_of(tmp_path))
    yield opened
    opened.close()


def test_tenants(store: Store) -> None:
    made = store.tenants.create("acme", TenantLimits(max_adapters=3, requests_per_minute=60), 2.5)
    assert store.tenants.get("acme") == made
    assert (made.limits.max_adapters, made.limits.max_bytes, made.weight) == (3, None, 2.5)
    with pytest.raises(Conflict, match="tenant 'acme' already"):
        store.tenants.create("acme")
    changed = store.tenants.set("acme", {"max_adapters": None, "weight": 1.0})
    assert (changed.limits, changed.weight) == (TenantLimits(requests_per_minute=60), 1.0)
    assert store.tenants.set("acme", {}) == changed
    store.tenants.create("later")
    assert [row.name for row in store.tenants.page()[0]] == ["later", "acme", ME]
    page, more = store.tenants.page(2)
    assert ([row.name for row in page], more) == (["later", "acme"], True)
    page, more = store.tenants.page(2, "acme")
    assert ([row.name for row in page], more) == ([ME], False)
    for missing in (
        lambda: store.tenants.get("no"),
        lambda: store.tenants.set("no", {"weight": 2.0}),
        lambda: store.tenants.page(2, "no"),
        lambda: store.tenants.remove("no"),
        lambda: store.keys.create("no", ["infer"], None, 0),
        lambda: store.put_version("no", "poet", new("one")),
    ):
        with pytest.raises(UnknownTenant, match="'no'"):
            missing()


def test_a_tenant_goes_with_all_it_has_or_not_at_all(store: Store) -> None:
    mine = put(store, "poet", "one")
    put(store, "poet", "one", "acme")
    put(store, "poet", "two", "acme", OTHER_BASE)
    key, _ = store.keys.create("acme", ["infer"], None, 0)
    row = store.tenants.get("acme")
    assert (row.adapters, row.bytes) == (1, 200 + len(CONFIG))
    with pytest.raises(Conflict, match=r"'acme' has 1 adapter: .*--with-adapters"):
        store.tenants.remove("acme")
    with pytest.raises(Conflict, match="always there"):
        store.tenants.remove(ME, with_adapters=True)
    assert {row.base_digest for row in store.tenants.remove("acme", with_adapters=True)} == {BASE, OTHER_BASE}
    with pytest.raises(UnknownKey):
        store.keys.get(key.id)
    assert store.get(ME, "poet", BASE) == mine
    store.tenants.create("acme")
    with pytest.raises(NotFound):
        store.get("acme", "poet", BASE)
    assert put(store, "poet", "one", "acme").version == 3  # numbers are never used again


def test_keys_are_found_by_their_hash_which_is_all_that_is_kept(store: Store, tmp_path: Path) -> None:
    assert not store.keys.required()
    made, secret = store.keys.create(ME, ["infer", "admin"], 500, 100)
    assert store.keys.required()
    assert secret.startswith(made.prefix)
    assert len(secret) == len("cdvft-") + 43
    [candidate] = store.keys.find(lookup_of(hash_of(secret))).candidates
    assert (candidate.key, candidate.hash) == (made, hash_of(secret))
    assert (made.tenant, made.scopes, made.created_at, made.expires_at) == (ME, ("infer", "admin"), 100, 500)
    assert not any(secret[len(made.prefix) :].encode() in path.read_bytes() for path in tmp_path.iterdir())
    assert store.keys.find("").candidates == ()
    revoked = store.keys.revoke(made.id, 200)
    assert store.keys.revoke(made.id, 300) == revoked  # the first time counts
    assert revoked.revoked_at == 200
    assert store.keys.required()
    store.keys.allow_unauthenticated()
    assert not store.keys.required()
    store.keys.create(ME, ["infer"], None, 0)
    assert store.keys.required()
    with pytest.raises(UnknownKey):
        store.keys.revoke("key_no", 0)


def test_a_flag_that_was_lost_counts_as_set(store: Store) -> None:
    with store._database.write() as connection:
        connection.exec_driver_sql("UPDATE settings SET value = ''")
    assert store.keys.required()
    with store._database.write() as connection:
        connection.exec_driver_sql("DELETE FROM settings")
    assert store.keys.required()


def test_rotation(store: Store) -> None:
    old, _ = store.keys.create(ME, ["upload"], 1100, 100)
    made, _, ending = store.keys.rotate(old.id, 50, None, 600)
    assert (made.scopes, made.expires_at, ending.id, ending.expires_at) == (("upload",), 1600, old.id, 650)
    again, _, ending = store.keys.rotate(made.id, 5000, 9000, 700)
    assert (again.expires_at, ending.expires_at) == (9000, 1600)  # it does not live longer than it was to
    with pytest.raises(Conflict, match="expired"):
        store.keys.rotate(old.id, 0, None, 650)
    store.keys.revoke(again.id, 700)
    with pytest.raises(Conflict, match="revoked"):
        store.keys.rotate(again.id, 0, None, 800)
    forever, _ = store.keys.create(ME, ["infer"], None, 0)
    assert store.keys.rotate(forever.id, 0, None, 10)[0].expires_at is None
    assert [row.id for row in store.keys.page(1)[0]] == [store.keys.page()[0][0].id]
    assert store.keys.page(tenant="nobody") == ([], False)
    rows, more = store.keys.page(2, made.id)
    assert ([row.id for row in rows], more) == ([old.id], False)


def test_quotas_hold_and_what_is_there_can_be_sent_again(store: Store) -> None:
    store.tenants.set(ME, {"max_adapters": 2, "max_bytes": 350 + len(CONFIG)})
    put(store, "a", "a1")
    put(store, "b", "b1")
    with pytest.raises(QuotaExceeded, match="adapter 3 of at most 2"):
        put(store, "c", "c1")
    put(store, "a", "a2")  # names are counted, not versions
    with pytest.raises(QuotaExceeded, match="bytes of adapters, at most"):
        put(store, "a", "a3")
    assert [row.version for row in store.list_versions(ME, "a", BASE)] == [2, 1]
    store.tenants.set(ME, {"max_adapters": 0})
    assert not store.put_version(ME, "a", new("a1"), alias="prod")[1]
    store.tenants.set(ME, {"max_adapters": 2})
    store.delete(ME, "b", None, BASE)
    assert put(store, "a", "a3").version == 3


def test_uploads_at_the_same_time_do_not_pass_the_quota_together(store: Store) -> None:
    store.tenants.set(ME, {"max_adapters": 3})
    outcomes: list[object] = []

    def upload(number: int) -> None:
        try:
            outcomes.append(put(store, f"a{number}", f"a{number}"))
        except QuotaExceeded as error:
            outcomes.append(error)

    threads = [threading.Thread(target=upload, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(outcome, QuotaExceeded) for outcome in outcomes) == 5
    assert len(store.list_adapters(ME, BASE)[0]) == 3


@pytest.mark.parametrize(
    ("when", "at"),
    [
        ("90d", 1000 + 90 * 86400),
        ("30m", 2800),
        ("2w", 1000 + 14 * 86400),
        (5000, 5000),
        ("1970-01-02", 86400),
        ("1970-01-01T01:00:00Z", 3600),
        ("1970-01-01T01:00+00:30", 1800),
    ],
)
def test_times_to_expire(when: str | int, at: int) -> None:
    assert parse_expiry(when, 1000) == at


@pytest.mark.parametrize("when", ["", "soon", "90", "-3d", "1d2h", "1970-01-01", 1000, "999999999w", 10**18])
def test_no_times_to_expire(when: str | int) -> None:
    with pytest.raises(ValueError, match=r"neither a time from now|not in the future"):
        parse_expiry(when, 1000)


@pytest.mark.parametrize("odd", ["\0", "a\0b", "\udcff", "", "../x"])
def test_what_no_database_can_be_asked_for_is_not_there(store_url: str, odd: str) -> None:
    """PostgreSQL's driver refuses a NUL and half a surrogate pair with errors of its own."""
    store = Store.open(store_url)
    try:
        for missing in (
            lambda: store.tenants.get(odd),
            lambda: store.tenants.set(odd, {"weight": 2.0}),
            lambda: store.tenants.page(2, odd),
            lambda: store.tenants.remove(odd),
            lambda: store.keys.create(odd, ["infer"], None, 0),
        ):
            with pytest.raises(UnknownTenant, match="there is no tenant"):
                missing()
        for no_key in (
            lambda: store.keys.get(odd),
            lambda: store.keys.revoke(odd, 0),
            lambda: store.keys.rotate(odd, 0, None, 0),
            lambda: store.keys.page(2, odd),
        ):
            with pytest.raises(UnknownKey, match="there is no key"):
                no_key()
        assert store.keys.page(tenant=odd) == ([], False)
    finally:
        store.close()

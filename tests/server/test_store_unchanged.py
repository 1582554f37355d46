"""Answers that are kept until somebody writes: never another than the database itself gives."""

from pathlib import Path
from random import Random

from cdvft_server.exceptions import NotFound
from cdvft_server.naming import AdapterRef, parse_model
from cdvft_server.store import Store, Unchanged
from cdvft_server.store.keys import hash_of, lookup_of

from tests.server.store_maker import BASE, ME, put, url_of

NAMES = [f"name{k}" for k in range(4)]


def test_a_number_that_every_write_changes_and_no_read(tmp_path: Path) -> None:
    one, other = Store.open(url_of(tmp_path)), Store.open(url_of(tmp_path))
    seen = [one.changes()]
    assert seen[0] is not None
    for store in (one, other, one, other):
        assert one.changes() == seen[-1]
        put(store, "name", f"content {len(seen)}")
        seen.append(one.changes())
        one.list_adapters(ME, BASE)
        other.ping()
        one.keys.find("")
    assert one.changes() == seen[-1]
    assert len(set(seen)) == len(seen)
    for store in (one, other):
        store.close()
        assert store.changes() is None


def test_what_is_kept_is_what_a_read_gives(tmp_path: Path) -> None:
    """Random writes through two stores, each name and key looked up after each, through what is kept and without."""
    stores = [Store.open(url_of(tmp_path)) for _ in range(2)]
    rng, store = Random(7), stores[0]
    kept: Unchanged[str, object] = Unchanged(store.changes)
    hits = 0

    def look(text: str) -> object:
        ref = parse_model(text, "base")
        assert isinstance(ref, AdapterRef)
        try:
            return store.resolve(ME, ref, BASE)
        except NotFound:
            return None

    put(store, "first", "first")
    row, secret = store.keys.create(ME, ("infer",), None, 0)
    lookup = lookup_of(hash_of(secret))
    for step in range(60):
        writer, name = rng.choice(stores), rng.choice(NAMES)
        if look(name) is None or rng.random() < 0.6:
            put(writer, name, f"content {step}", alias="prod" if rng.random() < 0.5 else None)
        else:
            writer.delete(ME, name, None, BASE)
        if step == 40:
            writer.keys.revoke(row.id, 1)
        for _ in range(2):
            for text in (*NAMES, *(f"{own}@prod" for own in NAMES), "first"):
                mark = kept.mark()
                found = kept.get(text)
                hits += found is not None
                assert found is None or found == look(text)
                if found is None and (answer := look(text)) is not None:
                    kept.put(text, answer, mark)
            mark = kept.mark()
            key = kept.get(lookup) or store.keys.find(lookup)
            assert key == store.keys.find(lookup)
            kept.put(lookup, key, mark)
    assert hits > 100
    for own in stores:
        own.close()


def test_an_answer_from_before_a_write_is_not_kept(tmp_path: Path) -> None:
    store = Store.open(url_of(tmp_path))
    kept: Unchanged[str, int] = Unchanged(store.changes)
    early = kept.mark()
    put(store, "name", "content")
    kept.put("a", 1, early)
    late = kept.mark()
    assert (kept.get("a"), early != late) == (None, True)
    kept.put("a", 1, early)
    kept.put("b", 2, late)
    assert (kept.get("a"), kept.get("b")) == (None, 2)
    store.close()


def test_where_changes_cannot_be_told_nothing_is_kept() -> None:
    kept: Unchanged[str, int] = Unchanged(lambda: None)
    mark = kept.mark()
    kept.put("a", 1, mark)
    assert (kept.mark(), kept.get("a")) == (None, None)

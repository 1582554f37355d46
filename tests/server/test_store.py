import time
from collections.abc import Iterator

import pytest
from cdvft.files import AdapterFiles
from cdvft_server.exceptions import AmbiguousDigest, Conflict, NotFound
from cdvft_server.naming import AdapterRef, Alias, DigestPrefix, Latest, Selector, Version
from cdvft_server.store import NewVersion, Store, Upload, VersionRow

from tests.server.postgres import execute
from tests.server.store_maker import BASE, CONFIG, ME, OTHER_BASE, digest_of, new, put

YOU = "you"


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    opened = Store.open(store_url)
    yield opened
    opened.close()


def resolve(store: Store, name: str, selector: object = None, tenant: str = ME, base: str = BASE) -> VersionRow:
    return store.resolve(tenant, AdapterRef(None, name, selector or Latest()), base)


def test_a_row_tells_everything(store: Store) -> None:
    before = int(time.time())
    summary = {"sites": ["q"], "é": {"max": 1.5, "none": None}}
    content = NewVersion(AdapterFiles(b"c", b"ww", b"ttt"), digest_of("x"), BASE, ["a", "b"], summary)
    row, created = store.put_version(ME, "poet", content, alias="prod", public=True, description="writes")
    assert created
    assert before <= row.created_at <= time.time()
    assert row == VersionRow(
        id=row.id,
        adapter_id=row.adapter_id,
        tenant=ME,
        name="poet",
        version=1,
        digest=digest_of("x"),
        base_digest=BASE,
        public=True,
        description="writes",
        pinned=False,
        created_at=row.created_at,
        bytes=6,
        summary=summary,
        form_labels=["a", "b"],
        aliases={"latest": 1, "prod": 1},
        hits=0,
        last_used=None,
    )
    assert store.get(ME, "poet", BASE) == store.get(ME, "poet", BASE, 1) == resolve(store, "poet") == row
    assert store.list_versions(ME, "poet", BASE) == [row]
    assert store.list_adapters(ME, BASE, 20) == ([row], False)
    assert store.files(row.id) == content.files


def test_it_is_all_there_after_reopening(store_url: str) -> None:
    store = Store.open(store_url)
    row = put(store, "poet", "one", alias="prod")
    store.close()
    store = Store.open(store_url)
    assert resolve(store, "poet", Alias("prod")) == row
    assert store.files(row.id) == new("one").files
    assert put(store, "poet", "two").version == 2
    store.close()


class TestVersions:
    def test_new_content_moves_latest(self, store: Store) -> None:
        assert put(store, "poet", "one").aliases == {"latest": 1}
        assert put(store, "poet", "two").aliases == {"latest": 2}
        assert put(store, "poet", "three", alias="prod").aliases == {"latest": 3, "prod": 3}
        assert put(store, "poet", "four").aliases == {"latest": 4, "prod": 3}
        assert [row.version for row in store.list_versions(ME, "poet", BASE)] == [4, 3, 2, 1]

    def test_known_content_moves_nothing_but_an_explicit_alias(self, store: Store) -> None:
        first = put(store, "poet", "one")
        put(store, "poet", "two")
        row, created = store.put_version(ME, "poet", new("one"))
        assert not created
        assert (row.id, row.version, row.aliases) == (first.id, 1, {"latest": 2})
        row, created = store.put_version(ME, "poet", new("one"), alias="prod", description="d", public=True)
        assert not created
        assert (row.aliases, row.description, row.public) == ({"latest": 2, "prod": 1}, "d", True)
        assert put(store, "poet", "three").version == 3

    def test_the_first_upload_of_a_content_is_the_one_that_stays(self, store: Store) -> None:
        row = put(store, "poet", "one")
        spaced = NewVersion(AdapterFiles(b"{ }", b"w"), digest_of("one"), BASE, ["l"], {})
        again, created = store.put_version(ME, "poet", spaced)
        assert (again, created) == (row, False)
        assert store.files(row.id) == new("one").files

    def test_numbers_are_never_used_again(self, store: Store) -> None:
        put(store, "poet", "one")
        put(store, "poet", "two")
        store.delete(ME, "poet", 2, BASE)
        assert put(store, "poet", "two").version == 3
        store.delete(ME, "poet", None, BASE)
        row = put(store, "poet", "one")
        assert (row.version, row.aliases) == (4, {"latest": 4})

    def test_ids_are_never_used_again(self, store: Store) -> None:
        ids = set()
        for number in range(3):
            ids.add(put(store, "poet", f"{number}").id)
            store.delete(ME, "poet", None, BASE)
        assert len(ids) == 3

    def test_visibility_and_description_stay_until_changed_or_deleted(self, store: Store) -> None:
        put(store, "poet", "one", public=True, description="first")
        row = put(store, "poet", "two")
        assert (row.public, row.description) == (True, "first")
        row = put(store, "poet", "three", public=False, description="")
        assert (row.public, row.description) == (False, "")
        put(store, "poet", "four", public=True)
        store.delete(ME, "poet", None, BASE)
        row = put(store, "poet", "five")
        assert (row.public, row.description) == (False, None)


class TestTexts:
    ODD = "é \U0001f600 \x01 \u2028 '"

    def test_any_text_comes_back(self, store: Store) -> None:
        """JSON holds everything; a description what a form can bring, but no NUL."""
        summary = {"template": f"{self.ODD}\0", "labels": ["\ud800", "\0"]}
        content = NewVersion(new("x").files, digest_of("x"), BASE, ["\0", "\udfff", self.ODD], summary)
        row, _ = store.put_version(ME, "poet", content, description=self.ODD)
        assert store.get(ME, "poet", BASE) == row
        assert (row.summary, row.form_labels, row.description) == (summary, content.form_labels, self.ODD)

    @pytest.mark.parametrize("name", ["\0", "a\0", "\ud800", "", "é", "x" * 1000])
    def test_names_that_nothing_can_have(self, store: Store, name: str) -> None:
        for call in (store.get, store.list_versions):
            with pytest.raises(NotFound):
                call(ME, name, BASE)
        with pytest.raises(NotFound):
            store.set_alias(ME, name, "prod", 1, BASE)
        with pytest.raises(NotFound):
            store.delete(ME, name, None, BASE)
        with pytest.raises(NotFound):
            store.list_adapters(ME, BASE, 1, name)


class TestResolve:
    def test_every_selector(self, store: Store) -> None:
        one, two = put(store, "poet", "one", alias="prod"), put(store, "poet", "two")
        expected = {
            Latest(): two,
            Alias("prod"): one,
            Alias("latest"): two,
            Version(1): one,
            Version(2): two,
            DigestPrefix(one.digest): one,
            DigestPrefix(two.digest[:19]): two,
        }
        for selector, row in expected.items():
            assert resolve(store, "poet", selector).version == row.version

    @pytest.mark.parametrize(
        "selector",
        [Alias("nope"), Alias("PROD"), Version(2), Version(2**31), Version(10**30), DigestPrefix("sha256:" + "0" * 12)],
    )
    def test_what_is_not_there(self, store: Store, selector: object) -> None:
        put(store, "poet", "one", alias="prod")
        with pytest.raises(NotFound, match="'poet'"):
            resolve(store, "poet", selector)

    def test_names_are_case_sensitive(self, store: Store) -> None:
        put(store, "poet", "one")
        for name in ("Poet", "poe", "poet2", "p%t"):
            with pytest.raises(NotFound):
                resolve(store, name)

    def test_a_prefix_of_several(self, store: Store) -> None:
        common = "sha256:" + "a" * 20
        for number in (1, 2):
            content = NewVersion(new("x").files, common + str(number) * 44, BASE, None, {})
            store.put_version(ME, "poet", content, alias=f"v{number}")
        with pytest.raises(AmbiguousDigest, match="versions 2, 1 of 'poet'"):
            resolve(store, "poet", DigestPrefix(common))
        assert resolve(store, "poet", DigestPrefix(common + "2")).version == 2
        store.put_version(ME, "bard", NewVersion(new("x").files, common + "3" * 44, BASE, None, {}))
        assert resolve(store, "bard", DigestPrefix(common)).name == "bard"

    @pytest.mark.parametrize(
        ("selector", "message"),
        [
            (Version(9), "adapter 'poet' has no version 9 (latest is 2); there are versions 2, 1"),
            (Alias("production"), "adapter 'poet' has no alias 'production'; there are latest, prod"),
            (
                DigestPrefix("sha256:" + "0" * 12),
                f"adapter 'poet' has no version whose digest begins with sha256:{'0' * 12}; there are versions 2, 1",
            ),
        ],
    )
    def test_which_part_is_missing(self, store: Store, selector: Selector, message: str) -> None:
        put(store, "poet", "one", alias="prod")
        put(store, "poet", "two")
        with pytest.raises(NotFound) as error:
            resolve(store, "poet", selector)
        assert str(error.value) == message
        with pytest.raises(NotFound) as error:
            resolve(store, "nomodel", selector)
        assert str(error.value) == "there is no adapter 'nomodel' on this base; GET /v1/models lists those there are"

    def test_other_tenants(self, store: Store) -> None:
        put(store, "poet", "mine", ME)
        put(store, "poet", "yours", YOU)
        put(store, "open", "yours too", YOU, public=True)
        assert resolve(store, "poet").digest == digest_of("mine")
        assert store.resolve(ME, AdapterRef(YOU, "open"), BASE).digest == digest_of("yours too")
        assert store.resolve(YOU, AdapterRef(YOU, "poet"), BASE).digest == digest_of("yours")
        messages = set()
        for ref in (AdapterRef(YOU, "poet"), AdapterRef("nobody", "poet"), AdapterRef(YOU, "poet", Version(1))):
            with pytest.raises(NotFound) as error:
                store.resolve(ME, ref, BASE)
            messages.add(str(error.value).replace(f"{ref.tenant}/", ""))
        assert messages == {  # hidden and missing look alike
            "there is no adapter 'poet' on this base; GET /v1/models lists those there are"
        }
        with pytest.raises(NotFound):
            resolve(store, "open")
        assert [row.name for row in store.list_adapters(ME, BASE)[0]] == ["poet"]
        with pytest.raises(NotFound):
            store.delete(ME, "open", None, BASE)


class TestBases:
    """Two servers with different bases on one database."""

    def test_each_sees_its_own(self, store: Store) -> None:
        here = put(store, "poet", "one", base=BASE, public=True, description="here")
        there = put(store, "poet", "one", base=OTHER_BASE)
        assert (here.version, there.version) == (1, 2)  # a number means one content, whatever the base
        assert (there.public, there.description, there.aliases) == (False, None, {"latest": 2})
        assert store.get(ME, "poet", BASE) == here
        assert store.list_versions(ME, "poet", OTHER_BASE) == [there]
        assert resolve(store, "poet", DigestPrefix(here.digest), base=OTHER_BASE).id == there.id
        for base, version in ((BASE, 2), (OTHER_BASE, 1)):
            with pytest.raises(NotFound):
                resolve(store, "poet", Version(version), base=base)
            with pytest.raises(NotFound):
                store.set_alias(ME, "poet", "prod", version, base)
            with pytest.raises(NotFound):
                store.delete(ME, "poet", version, base)
        assert put(store, "poet", "two", base=BASE).version == 3

    def test_each_deletes_its_own(self, store: Store) -> None:
        put(store, "poet", "one", base=BASE)
        there = put(store, "poet", "one", base=OTHER_BASE)
        store.delete(ME, "poet", None, BASE)
        with pytest.raises(NotFound):
            store.get(ME, "poet", BASE)
        assert store.get(ME, "poet", OTHER_BASE) == there
        assert store.files(there.id) == new("one").files
        assert store.list_adapters(ME, BASE) == ([], False)
        with pytest.raises(NotFound):
            store.list_adapters(ME, "sha256:" + "d" * 64, 20, after="poet")


class TestAliases:
    def test_promote_and_roll_back(self, store: Store) -> None:
        for text in ("one", "two", "three"):
            put(store, "poet", text)
        assert store.set_alias(ME, "poet", "prod", 1, BASE).aliases == {"latest": 3, "prod": 1}
        assert store.set_alias(ME, "poet", "prod", 2, BASE).aliases == {"latest": 3, "prod": 2}
        row = store.set_alias(ME, "poet", "latest", 1, BASE)
        assert (row.version, row.aliases) == (1, {"latest": 1, "prod": 2})
        assert resolve(store, "poet").version == 1
        assert put(store, "poet", "four").aliases == {"latest": 4, "prod": 2}

    def test_delete(self, store: Store) -> None:
        put(store, "poet", "one", alias="prod")
        assert store.delete_alias(ME, "poet", "prod", BASE).aliases == {"latest": 1}
        with pytest.raises(NotFound, match="no alias 'prod'"):
            store.delete_alias(ME, "poet", "prod", BASE)
        with pytest.raises(Conflict, match="'latest' cannot be removed") as error:
            store.delete_alias(ME, "poet", "latest", BASE)
        assert error.value.aliases == ("latest",)
        with pytest.raises(NotFound, match="no adapter 'bard'"):
            store.delete_alias(ME, "bard", "latest", BASE)

    def test_to_nowhere(self, store: Store) -> None:
        put(store, "poet", "one")
        for version in (0, -1, 2, 2**31, 10**30):
            with pytest.raises(NotFound, match="no version"):
                store.set_alias(ME, "poet", "prod", version, BASE)
        with pytest.raises(NotFound):
            store.set_alias(ME, "bard", "prod", 1, BASE)
        assert store.get(ME, "poet", BASE).aliases == {"latest": 1}


class TestDelete:
    def test_latest_falls_to_the_highest_left(self, store: Store) -> None:
        for text in ("one", "two", "three", "four"):
            put(store, "poet", text)
        store.delete(ME, "poet", 4, BASE)
        assert store.get(ME, "poet", BASE).version == 3
        store.set_alias(ME, "poet", "latest", 1, BASE)
        store.delete(ME, "poet", 3, BASE)
        assert store.get(ME, "poet", BASE).version == 1  # it did not point at what went
        store.delete(ME, "poet", 1, BASE)
        assert store.get(ME, "poet", BASE).aliases == {"latest": 2}
        [row] = store.delete(ME, "poet", 2, BASE).rows
        assert row.version == 2
        for call in (store.get, store.list_versions):
            with pytest.raises(NotFound, match="no adapter 'poet'"):
                call(ME, "poet", BASE)
        assert store.list_adapters(ME, BASE) == ([], False)

    def test_an_alias_holds_a_version(self, store: Store) -> None:
        put(store, "poet", "one", alias="prod")
        store.set_alias(ME, "poet", "canary", 1, BASE)
        put(store, "poet", "two")
        with pytest.raises(Conflict, match="alias canary, prod") as error:
            store.delete(ME, "poet", 1, BASE)
        assert error.value.aliases == ("canary", "prod")
        assert len(store.list_versions(ME, "poet", BASE)) == 2
        store.delete_alias(ME, "poet", "prod", BASE)
        store.set_alias(ME, "poet", "canary", 2, BASE)
        store.delete(ME, "poet", 1, BASE)
        deleted = store.delete(ME, "poet", None, BASE)  # takes its aliases along
        assert [row.version for row in deleted.rows] == [2]
        put(store, "poet", "three")
        assert store.get(ME, "poet", BASE).aliases == {"latest": 3}

    @pytest.mark.parametrize("version", [None, 1, 10**30])
    def test_of_nothing(self, store: Store, version: int | None) -> None:
        with pytest.raises(NotFound, match="'poet'"):
            store.delete(ME, "poet", version, BASE)

    def test_files_go_with_their_last_version(self, store: Store, store_url: str) -> None:
        one = put(store, "poet", "one")
        two = put(store, "poet", "two")
        copy = put(store, "bard", "one")
        put(store, "poet", "one", YOU)
        assert blob_count(store_url) == 5  # config and two weights, of one tenant; config and weights of the other
        assert store.delete(ME, "poet", one.version, BASE).bytes_freed == 0
        assert store.files(copy.id) == new("one").files
        with pytest.raises(NotFound, match="deleted"):
            store.files(one.id)
        assert store.delete(ME, "poet", two.version, BASE).bytes_freed == 100
        assert store.delete(ME, "bard", None, BASE).bytes_freed == 100 + len(CONFIG)
        assert blob_count(store_url) == 2
        assert store.delete(YOU, "poet", None, BASE).bytes_freed == 100 + len(CONFIG)
        assert blob_count(store_url) == 0

    def test_equal_files_of_one_version(self, store: Store) -> None:
        same = NewVersion(AdapterFiles(b"x", b"x", b"x"), digest_of("x"), BASE, None, {})
        row, _ = store.put_version(ME, "poet", same)
        assert row.bytes == 3
        assert store.files(row.id) == same.files
        assert store.delete(ME, "poet", None, BASE).bytes_freed == 1


def blob_count(url: str) -> int:
    return int(execute(url, "SELECT count(*) FROM blobs")[0][0])


class TestLists:
    def test_newest_first_in_pages(self, store: Store) -> None:
        names = [f"n{number}" for number in range(7)]
        for name in names:
            put(store, name, name)
        put(store, "n0", "again")  # a new version of an old name: its place in the list stays
        seen: list[str] = []
        after, more = None, True
        while more:
            rows, more = store.list_adapters(ME, BASE, 3, after)
            assert len(rows) == 3 or not more
            seen += [row.name for row in rows]
            after = seen[-1]
        assert seen == names[::-1]
        assert store.list_adapters(ME, BASE, 7)[1] is False
        assert store.list_adapters(ME, BASE, 6)[1] is True
        assert [row.name for row in store.list_adapters(ME, BASE)[0]] == names[::-1]
        assert store.list_adapters(ME, BASE, 3, "n0") == ([], False)

    def test_shows_what_latest_points_at(self, store: Store) -> None:
        put(store, "poet", "one", alias="prod")
        put(store, "poet", "two")
        store.set_alias(ME, "poet", "latest", 1, BASE)
        [row], _ = store.list_adapters(ME, BASE, 20)
        assert (row.version, row.aliases) == (1, {"latest": 1, "prod": 1})

    def test_goes_on_after_a_deleted_name(self, store: Store) -> None:
        for name in ("a", "b", "c"):
            put(store, name, name)
        store.delete(ME, "b", None, BASE)
        assert [row.name for row in store.list_adapters(ME, BASE, 20, "b")[0]] == ["a"]
        put(store, "b", "again")
        assert [row.name for row in store.list_adapters(ME, BASE)[0]] == ["b", "c", "a"]
        with pytest.raises(NotFound, match="'nobody'"):
            store.list_adapters(ME, BASE, 20, "nobody")


def test_hits(store: Store) -> None:
    one, two = put(store, "poet", "one"), put(store, "poet", "two")
    store.count_hits({one.id: 3, two.id: 1}, 1000)
    store.count_hits({one.id: 2, 10**9: 5}, 2000)
    store.count_hits({}, 3000)
    store.count_hits({one.id: 0}, 1500)  # another server's, which is late
    assert (store.get(ME, "poet", BASE, 1).hits, store.get(ME, "poet", BASE, 1).last_used) == (5, 2000)
    assert (store.get(ME, "poet", BASE, 2).hits, store.get(ME, "poet", BASE, 2).last_used) == (1, 1000)


class TestSteps:
    def test_recorded_once(self, store: Store) -> None:
        assert not store.step_done("demo")
        store.record_step("demo")
        store.record_step("demo")
        assert store.step_done("demo")
        assert not store.step_done("other")

    def test_a_step_and_its_uploads_are_one(self, store: Store) -> None:
        uploads = [Upload("a", new("a"), alias="prod"), Upload("b", new("b"), public=True, description="d")]
        broken = [*uploads, Upload("c", NewVersion(new("c").files, digest_of("c"), BASE, None, {"x": object()}))]
        with pytest.raises(Exception, match="not JSON serializable"):
            store.put_step(ME, "demo", broken)
        assert not store.step_done("demo")
        assert store.list_adapters(ME, BASE) == ([], False)
        outcomes = store.put_step(ME, "demo", uploads)
        assert [(row.name, row.version, created) for row, created in outcomes] == [("a", 1, True), ("b", 1, True)]
        assert outcomes[1][0].public
        store.delete(ME, "a", None, BASE)
        assert store.put_step(ME, "demo", uploads) == []
        assert [row.name for row in store.list_adapters(ME, BASE)[0]] == ["b"]

    def test_with_one_upload(self, store: Store) -> None:
        put(store, "a", "a", step="demo")
        put(store, "a", "b", step="demo")
        assert store.step_done("demo")


class TestPins:
    def test_a_pin_is_of_the_name_and_goes_with_it(self, store: Store) -> None:
        put(store, "poet", "one")
        row = store.set_pinned(ME, "poet", True, BASE)
        assert row.pinned
        assert row.is_latest
        assert store.get(ME, "poet", BASE) == row
        second = put(store, "poet", "two")
        assert second.pinned
        assert [own.version for own in store.pinned(BASE)] == [2]
        assert not store.get(ME, "poet", BASE, 1).is_latest
        store.delete(ME, "poet", 2, BASE)
        assert [own.version for own in store.pinned(BASE)] == [1]
        store.delete(ME, "poet", None, BASE)
        assert store.pinned(BASE) == []
        assert not put(store, "poet", "one").pinned

    def test_pins_are_of_one_base_and_kept_where_they_were_set(self, store_url: str) -> None:
        store = Store.open(store_url)
        for name, base in (("poet", BASE), ("poet", OTHER_BASE), ("other", BASE)):
            put(store, name, f"{name} {base}", base=base)
        store.set_pinned(ME, "poet", True, BASE)
        store.set_pinned(ME, "other", True, BASE)
        store.set_pinned(ME, "other", False, BASE)
        store.close()
        store = Store.open(store_url)
        assert [(row.name, row.base_digest) for row in store.pinned(BASE)] == [("poet", BASE)]
        assert store.pinned(OTHER_BASE) == []
        with pytest.raises(NotFound):
            store.set_pinned(ME, "nobody", True, BASE)
        store.close()

    def test_recent_is_by_use_then_by_age(self, store: Store) -> None:
        rows = {text: put(store, name, text) for name, text in (("a", "a1"), ("b", "b1"), ("a", "a2"), ("c", "c1"))}
        put(store, "d", "d1", base=OTHER_BASE)
        put(store, "e", "e1", tenant="other")
        store.count_hits({rows["b1"].id: 1}, 100)
        store.count_hits({rows["a1"].id: 1}, 200)
        found = [(row.name, row.version) for row in store.recent(BASE)]
        assert found == [("a", 1), ("b", 1), ("e", 1), ("c", 1), ("a", 2)]
        assert [(row.name, row.version) for row in store.recent(BASE, 2)] == found[:2]
        store.set_pinned(ME, "a", True, BASE)
        store.set_pinned(ME, "b", True, BASE)
        assert [(row.name, row.version) for row in store.pinned(BASE)] == [("b", 1), ("a", 2)]

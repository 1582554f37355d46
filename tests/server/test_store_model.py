"""The store against a model in plain Python: any sequence of operations, of two tenants and two bases."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cdvft_server.exceptions import AmbiguousDigest, Conflict, NotFound
from cdvft_server.naming import AdapterRef, Alias, DigestPrefix, Latest, Version
from cdvft_server.store import Store
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.server.postgres import Postgres
from tests.server.store_maker import BASE, CONFIG, OTHER_BASE, digest_of, new, url_of, weights_of

tenants = st.sampled_from(["default", "you"])
bases = st.sampled_from([BASE, OTHER_BASE])
names = st.sampled_from(["a", "b", "c"])
texts = st.sampled_from([f"text {number}" for number in range(6)])
numbers = st.integers(0, 8)
alias_names = st.sampled_from(["latest", "prod", "canary"])
Key = tuple[str, str, str]  # tenant, name, base


@dataclass
class Model:
    """One tenant's name on one base."""

    versions: dict[int, str] = field(default_factory=dict)  # number -> text
    aliases: dict[str, int] = field(default_factory=dict)
    public: bool = False
    description: str | None = None
    born: int = 0
    hits: dict[int, int] = field(default_factory=dict)


class StoreMachine(RuleBasedStateMachine):
    def __init__(self, empty_url: Callable[[], str]) -> None:
        super().__init__()
        self.empty_url = empty_url

    @initialize()
    def start(self) -> None:
        self.url = self.empty_url()
        self.store = Store.open(self.url)
        self.store.tenants.create("you")
        self.models: dict[Key, Model] = {}
        self.highest: dict[tuple[str, str], int] = {}
        self.clock = 0

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()

    def living(self, tenant: str, name: str, base: str) -> Model | None:
        model = self.models.get((tenant, name, base))
        return model if model and model.versions else None

    @rule(
        tenant=tenants,
        name=names,
        base=bases,
        text=texts,
        alias=st.none() | alias_names,
        public=st.none() | st.booleans(),
        description=st.none() | st.sampled_from(["", "x"]),
    )
    def upload(self, *, tenant, name, base, text, alias, public, description) -> None:
        model = self.models.setdefault((tenant, name, base), Model())
        known = [number for number, stored in model.versions.items() if stored == text]
        if known:
            [number] = known
        else:
            number = self.highest[tenant, name] = self.highest.get((tenant, name), 0) + 1
            if not model.versions:
                self.clock += 1
                model.born = self.clock
            model.versions[number] = text
            model.hits[number] = 0
            model.aliases["latest"] = number
        if alias:
            model.aliases[alias] = number
        model.public = model.public if public is None else public
        model.description = model.description if description is None else description
        row, created = self.store.put_version(
            tenant, name, new(text, base), alias=alias, public=public, description=description
        )
        assert (row.version, created) == (number, not known)
        self.check_row(row, model)

    @rule(tenant=tenants, name=names, base=bases, alias=alias_names, number=numbers)
    def set_alias(self, tenant, name, base, alias, number) -> None:
        model = self.living(tenant, name, base)
        if model is None or number not in model.versions:
            with pytest.raises(NotFound):
                self.store.set_alias(tenant, name, alias, number, base)
            return
        model.aliases[alias] = number
        row = self.store.set_alias(tenant, name, alias, number, base)
        assert row.version == model.aliases["latest"]
        self.check_row(row, model)

    @rule(tenant=tenants, name=names, base=bases, alias=alias_names)
    def delete_alias(self, tenant, name, base, alias) -> None:
        model = self.living(tenant, name, base)
        if model is None or alias not in model.aliases:
            with pytest.raises(NotFound):
                self.store.delete_alias(tenant, name, alias, base)
        elif alias == "latest":
            with pytest.raises(Conflict):
                self.store.delete_alias(tenant, name, alias, base)
        else:
            del model.aliases[alias]
            self.check_row(self.store.delete_alias(tenant, name, alias, base), model)

    @rule(tenant=tenants, name=names, base=bases, number=st.none() | numbers)
    def delete(self, tenant, name, base, number) -> None:
        model = self.living(tenant, name, base)
        if model is None or (number is not None and number not in model.versions):
            with pytest.raises(NotFound):
                self.store.delete(tenant, name, number, base)
            return
        holders = sorted(alias for alias, target in model.aliases.items() if target == number and alias != "latest")
        if holders:
            with pytest.raises(Conflict) as error:
                self.store.delete(tenant, name, number, base)
            assert list(error.value.aliases) == holders
            return
        before = self.stored_bytes(tenant)
        for gone in [*model.versions] if number is None else [number]:
            del model.versions[gone], model.hits[gone]
        if not model.versions:
            model.aliases, model.public, model.description = {}, False, None
        elif model.aliases["latest"] == number:
            model.aliases["latest"] = max(model.versions)
        freed = self.store.delete(tenant, name, number, base).bytes_freed
        assert freed == before - self.stored_bytes(tenant)

    @rule(tenant=tenants, name=names, base=bases, number=numbers, count=st.integers(1, 5))
    def hit(self, tenant, name, base, number, count) -> None:
        model = self.living(tenant, name, base)
        if model and number in model.versions:
            model.hits[number] += count
            row = self.store.get(tenant, name, base, number)
            self.store.count_hits({row.id: count}, 1000)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = Store.open(self.url)

    @rule(
        caller=tenants,
        tenant=st.none() | tenants,
        name=names,
        base=bases,
        text=texts,
        number=numbers,
        alias=alias_names,
    )
    def resolve(self, *, caller, tenant, name, base, text, number, alias) -> None:
        model = self.living(tenant or caller, name, base)
        if model and tenant not in (None, caller) and not model.public:
            model = None
        contents = {stored: version for version, stored in model.versions.items()} if model else {}
        expected = {
            Latest(): model and model.aliases["latest"],
            Alias(alias): model and model.aliases.get(alias),
            Version(number): number if model and number in model.versions else None,
            DigestPrefix(digest_of(text)[:19]): contents.get(text),
        }
        for selector, version in expected.items():
            ref = AdapterRef(tenant, name, selector)
            if version is None:
                with pytest.raises(NotFound):
                    self.store.resolve(caller, ref, base)
            else:
                row = self.store.resolve(caller, ref, base)
                assert (row.tenant, row.version) == (tenant or caller, version)
                self.check_row(row, model)
        if len(contents) > 1:
            with pytest.raises(AmbiguousDigest):
                self.store.resolve(caller, AdapterRef(tenant, name, DigestPrefix("sha256:")), base)

    @invariant()
    def lists_show_the_models(self) -> None:
        for tenant in ("default", "you"):
            for base in (BASE, OTHER_BASE):
                own = [(n, m) for (t, n, b), m in self.models.items() if (t, b) == (tenant, base) and m.versions]
                expected = sorted(own, key=lambda item: -item[1].born)
                rows, more = self.store.list_adapters(tenant, base)
                assert [(row.name, row.version) for row in rows] == [(n, m.aliases["latest"]) for n, m in expected]
                assert not more
                for place, (name, model) in enumerate(expected):
                    listed = self.store.list_versions(tenant, name, base)
                    assert [row.version for row in listed] == sorted(model.versions, reverse=True)
                    for row in listed:
                        self.check_row(row, model)
                    page, more = self.store.list_adapters(tenant, base, 1, after=name)
                    assert page == rows[place + 1 : place + 2]
                    assert more == (place + 2 < len(rows))

    def stored_bytes(self, tenant: str) -> int:
        """By the model: each content once, and the config that all share."""
        contents = {text for (t, _, _), model in self.models.items() if t == tenant for text in model.versions.values()}
        return sum(len(weights_of(text)) for text in contents) + (len(CONFIG) if contents else 0)

    def check_row(self, row, model: Model) -> None:
        text = model.versions[row.version]
        assert row.digest == digest_of(text)
        assert row.summary["text"] == text
        assert (row.aliases, row.public, row.description) == (model.aliases, model.public, model.description)
        assert row.hits == model.hits[row.version]
        assert self.store.files(row.id) == new(text).files


def check(empty_url: Callable[[], str], examples: int) -> None:
    slow = [HealthCheck.too_slow]
    limits = settings(max_examples=examples, stateful_step_count=25, deadline=None, suppress_health_check=slow)
    run_state_machine_as_test(lambda: StoreMachine(empty_url), settings=limits)


def test_store_against_the_model(tmp_path: Path) -> None:
    check(lambda: url_of(Path(tempfile.mkdtemp(dir=tmp_path))), 12)


def test_store_against_the_model_on_postgresql(postgres: Postgres) -> None:
    check(postgres.emptied, 5)

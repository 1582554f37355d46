import re

import pytest
from cdvft_server.exceptions import InvalidName, ModelNotFound
from cdvft_server.naming import (
    MAX_VERSION,
    AdapterRef,
    Alias,
    BaseRef,
    DigestPrefix,
    Latest,
    Version,
    check_name,
    parse_model,
    parse_version,
)
from hypothesis import given
from hypothesis import strategies as st

BASE = "cdvft-tiny"
HEX = "0123456789ab"


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (BASE, BaseRef()),
        ("poet", AdapterRef(None, "poet", Latest())),
        ("poet@latest", AdapterRef(None, "poet", Latest())),
        ("poet@prod", AdapterRef(None, "poet", Alias("prod"))),
        ("poet@7", AdapterRef(None, "poet", Version(7))),
        (f"poet@{MAX_VERSION}", AdapterRef(None, "poet", Version(MAX_VERSION))),
        ("poet@sha256:" + HEX, AdapterRef(None, "poet", DigestPrefix("sha256:" + HEX))),
        ("poet@sha256:" + "AB" * 32, AdapterRef(None, "poet", DigestPrefix("sha256:" + "ab" * 32))),
        (f"{BASE}:poet", AdapterRef(None, "poet", Latest())),
        (f"{BASE}:poet@3", AdapterRef(None, "poet", Version(3))),
        (f"{BASE}:{BASE}", AdapterRef(None, BASE, Latest())),
        (f"{BASE}:poet@sha256:{HEX}", AdapterRef(None, "poet", DigestPrefix("sha256:" + HEX))),
        ("acme/poet", AdapterRef("acme", "poet", Latest())),
        ("acme/poet@prod", AdapterRef("acme", "poet", Alias("prod"))),
        (f"{BASE}:acme/poet@2", AdapterRef("acme", "poet", Version(2))),
        ("7", AdapterRef(None, "7", Latest())),
        ("a" * 96, AdapterRef(None, "a" * 96, Latest())),
        (BASE.upper(), AdapterRef(None, BASE.upper(), Latest())),
    ],
)
def test_forms(model: str, expected: object) -> None:
    assert parse_model(model, BASE) == expected


@pytest.mark.parametrize(
    "model",
    [
        "",
        " poet",
        "poet ",
        "poet\n",
        "poet@",
        "poet@a@b",
        "poet@0",
        "poet@01",
        "poet@-1",
        "poet@+1",
        "poet@٣",
        f"poet@{MAX_VERSION + 1}",
        "poet@" + "9" * 400,
        "poet@sha256:" + HEX[:11],
        "poet@sha256:" + "a" * 65,
        "poet@sha256:" + "g" * 12,
        "poet@sha512:" + HEX,
        "@latest",
        "/poet",
        "acme/",
        "a/b/c",
        "../poet",
        f"{BASE}:",
        f"{BASE}:{BASE}:poet",
        "other:poet",
        "_poet",
        "poët",
        "a" * 97,
        "acme/poet/",
        "poet\x00",
    ],
)
def test_malformed_models_do_not_exist(model: str) -> None:
    with pytest.raises(ModelNotFound, match="does not exist"):
        parse_model(model, BASE)


def test_served_name_may_look_like_anything() -> None:
    assert parse_model("meta/llama", "meta/llama") == BaseRef()
    assert parse_model("meta/llama:poet@1", "meta/llama") == AdapterRef(None, "poet", Version(1))
    assert parse_model("meta/llama@1", "meta/llama") == AdapterRef("meta", "llama", Version(1))
    assert parse_model("a@b", "a@b") == BaseRef()


def test_message_is_short_and_says_what_would_be_right() -> None:
    with pytest.raises(ModelNotFound, match="NAME@ALIAS") as error:
        parse_model("é" * 100_000, BASE)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("value", ["a", "0", "A.b_c-d", "a" * 96, "v1"])
def test_names(value: str) -> None:
    assert check_name("adapter", value) == value
    assert check_name("tenant", value) == value


@pytest.mark.parametrize("value", ["", ".a", "-a", "_a", "a b", "a/b", "a@b", "a:b", "a\n", "é", "a" * 97])
def test_bad_names(value: str) -> None:
    for kind in ("adapter", "alias", "tenant"):
        with pytest.raises(InvalidName, match=f"{kind} name"):
            check_name(kind, value)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["0", "1", "007", "9" * 96])
def test_an_alias_is_not_a_number(value: str) -> None:
    with pytest.raises(InvalidName, match="a number"):
        check_name("alias", value)


names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}", fullmatch=True)
selectors = st.one_of(
    st.just(("", Latest())),
    names.filter(lambda n: not n.isdigit()).map(lambda n: ("@" + n, Latest() if n == "latest" else Alias(n))),
    st.integers(1, MAX_VERSION).map(lambda v: (f"@{v}", Version(v))),
    st.from_regex(r"[0-9a-f]{12,64}", fullmatch=True).map(lambda h: (f"@sha256:{h}", DigestPrefix(f"sha256:{h}"))),
)


@given(name=names, tenant=st.none() | names, selector=selectors, base=names, prefixed=st.booleans())
def test_round_trip(name: str, tenant: str | None, selector: tuple, base: str, prefixed: bool) -> None:
    text, parsed = selector
    model = (f"{base}:" if prefixed else "") + (f"{tenant}/" if tenant else "") + name + text
    expected = BaseRef() if model == base else AdapterRef(tenant, name, parsed)
    assert parse_model(model, base) == expected


@given(model=st.text(), base=names)
def test_any_text_is_a_valid_reference_or_not_found(model: str, base: str) -> None:
    try:
        ref = parse_model(model, base)
    except ModelNotFound:
        return
    if isinstance(ref, BaseRef):
        assert model == base
    else:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}", ref.name)
        assert ref.name in model


@given(st.text(alphabet="0123456789+-_ .e٣", max_size=12))
def test_versions(text: str) -> None:
    version = parse_version(text)
    assert version is None or (1 <= version <= MAX_VERSION and str(version) == text)

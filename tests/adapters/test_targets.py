"""Which layers a config targets: PEFT's own matcher is the oracle."""

from types import SimpleNamespace

import pytest
from cdvft.baseinfo import BaseInfo
from cdvft.errors import InvalidAdapter
from cdvft.family import FAMILIES
from cdvft.patterns import MAX_ENTRIES, full_match, layer_index, lookup
from cdvft.site import Site
from cdvft.targets import target_names, targeted_sites
from hypothesis import given
from hypothesis import strategies as st
from peft.tuners.tuners_utils import check_target_module_exists

LLAMA = [
    f"layers.{i}.{part}"
    for i in (0, 1, 2, 10)
    for part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
]
ROBERTA = [
    f"encoder.layer.{i}.{part}"
    for i in (0, 1, 11)
    for part in ("attention.self.query", "attention.self.value", "attention.output.dense", "output.dense")
]


def base_of(model_type: str, names: list[str]) -> BaseInfo:
    sites = {name: Site(name, 4, 4) for name in names}
    return BaseInfo("b", "sha256:" + "0" * 64, FAMILIES[model_type], sites, 4, 16, False)


BASES = [base_of("llama", LLAMA), base_of("roberta", ROBERTA)]


def peft_says(config: dict, base: BaseInfo) -> set[str]:
    keys = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
    peft_config = SimpleNamespace(**{key: config.get(key) for key in keys})
    return {n for n in base.sites if check_target_module_exists(peft_config, base.family.prefixes[0] + n)}


def ours(config: dict, base: BaseInfo) -> set[str]:
    return {site.name for site in targeted_sites(config, base)}


ENDS = [
    "q_proj",
    "self_attn.q_proj",
    "up_proj",
    "dense",
    "output.dense",
    "query",
    "roj",
    "layers",
    "0",
    "layers.1.mlp.up_proj",
    "model.layers.1.mlp.up_proj",
    "roberta.encoder.layer.11.output.dense",
    "encoder.layer.1.attention.self.query",
]
PATTERNS = [
    r".*q_proj",
    r"model\.layers\.[01]\.mlp\.(up|down)_proj",
    r".*\.(1|11)\..*dense",
    r"roberta.*value",
    "q_proj",
    ".",
]
names = st.lists(st.sampled_from(ENDS), min_size=1, max_size=4)


@given(
    base=st.sampled_from(BASES),
    target=names | st.sampled_from(PATTERNS),
    exclude=st.none() | names | st.sampled_from(PATTERNS),
    layers=st.none() | st.lists(st.sampled_from([0, 1, 2, 10, 11]), max_size=3) | st.sampled_from([0, 10]),
    pattern=st.none() | st.sampled_from(["layers", "layer", "self_attn", "", ["layer", "layers"], ["lay.*"], []]),
)
def test_selection_equals_pefts(base, target, exclude, layers, pattern) -> None:
    config = {"target_modules": target, "exclude_modules": exclude}
    if isinstance(target, list):  # PEFT refuses layers_to_transform beside a pattern
        config |= {"layers_to_transform": layers, "layers_pattern": pattern}
    assert ours(config, base) == peft_says(config, base)


def test_all_linear_takes_every_site_but_what_is_left_out() -> None:
    base = BASES[0]
    assert ours({"target_modules": "all-linear"}, base) == ours({"target_modules": "All-Linear"}, base) == set(LLAMA)
    left = ours({"target_modules": "all-linear", "exclude_modules": ["q_proj"], "layers_to_transform": [1, 10]}, base)
    assert left == {n for n in LLAMA if ".1." in n or ".10." in n} - {n for n in LLAMA if n.endswith("q_proj")}


def test_names_count_with_and_without_the_family_prefix() -> None:
    base = BASES[1]
    for prefix in ("", "roberta."):
        full = f"{prefix}encoder.layer.0.attention.self.query"
        assert ours({"target_modules": [full]}, base) == {"encoder.layer.0.attention.self.query"}
        assert ours({"target_modules": full.replace(".", r"\.")}, base) == {"encoder.layer.0.attention.self.query"}


@given(st.sampled_from(BASES), st.data())
def test_target_names_select_exactly_the_sites(base, data) -> None:
    chosen = set(data.draw(st.lists(st.sampled_from(sorted(base.sites)), unique=True)))
    names = target_names((base.sites[name] for name in chosen), base)
    assert ours({"target_modules": names}, base) == chosen
    assert names == sorted(names)


def test_target_names_are_short_where_they_can_be() -> None:
    llama, roberta = BASES
    assert target_names((s for n, s in llama.sites.items() if n.endswith(("q_proj", "up_proj"))), llama) == [
        "q_proj",
        "up_proj",
    ]
    dense = [site for name, site in roberta.sites.items() if name.endswith("dense")]
    assert "dense" not in target_names(dense, roberta)  # PEFT would take the head's, too


@pytest.mark.parametrize("pattern", [r"(?=a)b", r"(a)\1", "(", "[", "a{2000}", r"\Z" * 3, "a" * 5000])
def test_patterns_that_re2_refuses_are_refused_by_name(pattern: str) -> None:
    with pytest.raises(InvalidAdapter, match="target_modules"):
        full_match(pattern, ["a"], "target_modules")


def test_a_pattern_that_explodes_elsewhere_is_quick() -> None:
    assert not full_match(r"(a+)+$", ["a" * 2000 + "b"], "target_modules")
    assert full_match(r"(.*)*(.*)*(.*)*q", ["x" * 2000 + "q"], "target_modules")


def test_lookup_takes_the_first_entry_and_is_bounded() -> None:
    assert lookup({"k_proj": 1, "q_proj": 2, "layers.0.q_proj": 3}, "layers.0.q_proj", "sizes") == 2
    assert lookup({r"layers\.[12]\.q_proj": 1}, "model.layers.2.q_proj", "sizes") == 1
    assert lookup({"q_pro": 1}, "layers.0.q_proj", "sizes") is None
    with pytest.raises(InvalidAdapter, match="sizes has 1025 entries, at most 1024"):
        lookup({str(i): 1 for i in range(MAX_ENTRIES + 1)}, "q_proj", "sizes")


def test_layer_index_is_the_last_numbered_part() -> None:
    assert layer_index(["model.layers.3.mlp.up_proj"], []) == 3
    assert layer_index(["a.blocks.3.experts.7.up"], []) == 7
    assert layer_index(["a.blocks.3.experts.7.up"], ["blocks"]) == 3
    assert layer_index(["pooler.dense"], []) is None

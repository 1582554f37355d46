"""Which backbone linears a PEFT config targets: the rules of PEFT, without its regular expressions' running time."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from cdvft.baseinfo import BaseInfo
from cdvft.errors import InvalidAdapter
from cdvft.files import CONFIG_NAME
from cdvft.methods.values import short
from cdvft.patterns import full_match, layer_index
from cdvft.site import Site

__all__ = ["ALL_LINEAR", "target_names", "targeted_sites"]

ALL_LINEAR = "all-linear"
MAX_NAMES = 1024


def targeted_sites(config: Mapping[str, Any], base: BaseInfo) -> set[Site]:
    """The base's sites that `target_modules`, `exclude_modules`, `layers_to_transform` and `layers_pattern` select.

    A list entry is a whole module path or its end after a dot; a string is `all-linear` or a pattern (RE2) for
    the whole path. Paths count with each of the family's prefixes and without. Raises InvalidAdapter for
    malformed values.
    """
    target = _names(config, "target_modules")
    exclude = _names(config, "exclude_modules")
    layers = _layers(config)
    pattern = _names(config, "layers_pattern")
    patterns = frozenset([pattern] if pattern else []) if isinstance(pattern, str) else pattern
    selected = set()
    for site in base.sites.values():
        paths = [site.name, *(prefix + site.name for prefix in base.family.prefixes)]
        if not _matches(target, paths, "target_modules") or _matches(exclude, paths, "exclude_modules"):
            continue
        whole = isinstance(target, frozenset) and not target.isdisjoint(paths[1:])  # PEFT: whatever its layer
        if whole or layers is None or layer_index(paths, patterns) in layers:
            selected.add(site)
    return selected


def target_names(sites: Iterable[Site], base: BaseInfo) -> list[str]:
    """`target_modules` for these sites: a last name where it stands for exactly them, else whole paths."""
    chosen = {site.name for site in sites}
    names = set()
    for name in chosen:
        tail = name.rpartition(".")[2]
        alike = {other for other in base.sites if other.rpartition(".")[2] == tail}
        # poolers and heads have a `dense` too, which PEFT would match
        names.add(tail if alike <= chosen and tail != "dense" else name)
    return sorted(names)


def _matches(target: str | frozenset[str], paths: list[str], key: str) -> bool:
    if isinstance(target, str):
        if key == "target_modules" and target.lower() == ALL_LINEAR:
            return True
        return bool(target) and full_match(target, paths, key)
    return bool(target) and not target.isdisjoint(_endings(*paths))


@lru_cache(maxsize=8192)
def _endings(*paths: str) -> frozenset[str]:
    """The whole paths, and what comes after each of their dots."""
    parts = [path.split(".") for path in paths]
    return frozenset(".".join(own[i:]) for own in parts for i in range(len(own)))


def _names(config: Mapping[str, Any], key: str) -> str | frozenset[str]:
    value = config.get(key)
    if value is None:
        return frozenset()
    if isinstance(value, str):
        return value
    if isinstance(value, list) and len(value) <= MAX_NAMES and all(isinstance(name, str) for name in value):
        if "" in value:
            raise InvalidAdapter(f"{CONFIG_NAME}: {key} has an empty string among its names; leave it out")
        return frozenset(value)
    raise InvalidAdapter(
        f"{CONFIG_NAME}: {key} must be a string or a list of at most {MAX_NAMES} names, it is {short(value)}"
    )


def _layers(config: Mapping[str, Any]) -> frozenset[int] | None:
    value = config.get("layers_to_transform")
    if value is None or value == []:
        return None
    values = value if isinstance(value, list) else [value]
    if not all(type(v) is int and v >= 0 for v in values):
        raise InvalidAdapter(
            f"{CONFIG_NAME}: layers_to_transform must be a layer number or a list of them, it is {short(value)}"
        )
    return frozenset(values)

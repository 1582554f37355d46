"""How a request names the base or an adapter. Pure: knows neither the store nor HTTP."""

import re
from dataclasses import dataclass
from typing import Literal

from cdvft_server.exceptions import InvalidName, ModelNotFound

__all__ = [
    "MAX_VERSION",
    "AdapterRef",
    "Alias",
    "BaseRef",
    "DigestPrefix",
    "Latest",
    "Selector",
    "Version",
    "check_name",
    "is_name",
    "parse_model",
    "parse_version",
]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
NUMBER = re.compile(r"[0-9]+")
VERSION = re.compile(r"[1-9][0-9]{0,9}")
DIGEST = re.compile(r"sha256:([0-9a-fA-F]{12,64})")
MAX_VERSION = 2**31 - 1


@dataclass(frozen=True)
class Latest:
    """`NAME`: the alias `latest`."""


@dataclass(frozen=True)
class Alias:
    """`NAME@ALIAS`."""

    alias: str


@dataclass(frozen=True)
class Version:
    """`NAME@VERSION`, 1 to MAX_VERSION."""

    version: int


@dataclass(frozen=True)
class DigestPrefix:
    """`NAME@sha256:PREFIX`; `prefix` is "sha256:" and 12 to 64 lower-case hex digits."""

    prefix: str


Selector = Latest | Alias | Version | DigestPrefix


@dataclass(frozen=True)
class BaseRef:
    """The base itself."""


@dataclass(frozen=True)
class AdapterRef:
    """`tenant` None means the caller's own."""

    tenant: str | None
    name: str
    selector: Selector = Latest()


def check_name(kind: Literal["adapter", "alias", "tenant"], value: str) -> str:
    """The value itself. Raises InvalidName where it breaks the rule for names of that kind."""
    if NAME.fullmatch(value) is None:
        raise InvalidName(
            f"{kind} name {value[:200]!r} is not allowed: use 1 to 96 of the characters A-Z a-z 0-9 . _ - "
            "and begin with a letter or a digit"
        )
    if kind == "alias" and NUMBER.fullmatch(value):
        raise InvalidName(
            f"alias {value!r} is a number, which would read as a version; use a name such as 'production'"
        )
    return value


def is_name(value: str) -> bool:
    """Whether an adapter or a tenant can have this name."""
    return NAME.fullmatch(value) is not None


def parse_version(text: str) -> int | None:
    """1 to MAX_VERSION in decimal without leading zeros, else None."""
    if VERSION.fullmatch(text) is None or int(text) > MAX_VERSION:
        return None
    return int(text)


def parse_model(model: str, served_name: str) -> BaseRef | AdapterRef:
    """Tried in this order: SERVED, SERVED:[TENANT/]NAME[@SELECTOR], [TENANT/]NAME[@SELECTOR].

    SELECTOR is an alias, a version number or sha256:PREFIX. Raises ModelNotFound for anything else: nothing falls
    back to the base.
    """
    if model == served_name:
        return BaseRef()
    rest, at, selector = model.removeprefix(f"{served_name}:").partition("@")
    tenant, slash, name = rest.rpartition("/")
    try:
        return AdapterRef(
            tenant=check_name("tenant", tenant) if slash else None,
            name=check_name("adapter", name),
            selector=_selector(selector) if at else Latest(),
        )
    except InvalidName as error:
        raise ModelNotFound(
            f"model {model[:200]!r} does not exist ({error}); the base is {served_name!r}, an adapter is "
            "NAME, NAME@ALIAS, NAME@VERSION or NAME@sha256:PREFIX"
        ) from None


def _selector(text: str) -> Selector:
    if digest := DIGEST.fullmatch(text):
        return DigestPrefix("sha256:" + digest[1].lower())
    if text.startswith("sha256:"):
        raise InvalidName("a digest prefix is sha256: and 12 to 64 hex digits")
    if NUMBER.fullmatch(text):
        version = parse_version(text)
        if version is None:
            raise InvalidName(f"a version is a number from 1 to {MAX_VERSION} without leading zeros")
        return Version(version)
    return Latest() if text == "latest" else Alias(check_name("alias", text))

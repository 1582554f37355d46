"""What a client may do to a name, and what the name is after that: the rules that API.md states, without a server."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Protocol

import httpx

from tests.server.http.contents import Content

LATEST = "latest"
ALIASES = ("prod", "canary")
MOST = 5  # versions of a name; then some are deleted


@dataclass(frozen=True)
class Name:
    """`versions`: number -> digest; `highest`: the last number that was given."""

    versions: Mapping[int, str] = field(default_factory=dict)
    aliases: Mapping[str, int] = field(default_factory=dict)
    highest: int = 0

    def same_as(self, other: "Name") -> bool:
        """As far as can be seen from outside."""
        return (self.versions, self.aliases) == (other.versions, other.aliases)

    def held(self, version: int) -> bool:
        return any(alias != LATEST and target == version for alias, target in self.aliases.items())

    def digest(self, selector: str) -> str | None:
        """What the name with "", "@ALIAS" or "@VERSION" means; None: it is a 404."""
        target = selector.removeprefix("@") or LATEST
        return self.versions.get(int(target) if target.isdigit() else self.aliases.get(target, 0))


class Change(Protocol):
    kind: str

    def send(self, client: httpx.Client, name: str) -> httpx.Response: ...

    def after(self, before: Name) -> Name: ...

    def status(self, before: Name) -> int: ...


@dataclass(frozen=True)
class Put:
    content: Content
    alias: str | None = None
    kind = "upload"

    def send(self, client: httpx.Client, name: str) -> httpx.Response:
        fields = {"name": name} | ({"alias": self.alias} if self.alias else {})
        files = {"config": ("c.json", self.content.files.config), "weights": ("w", self.content.files.weights)}
        return client.post("/v1/adapters", data=fields, files=files)

    def after(self, before: Name) -> Name:
        known = self._known(before)
        number = known or before.highest + 1
        aliases = dict(before.aliases) if known else {**before.aliases, LATEST: number}
        if self.alias:
            aliases[self.alias] = number
        return Name({**before.versions, number: self.content.digest}, aliases, max(before.highest, number))

    def status(self, before: Name) -> int:
        return 200 if self._known(before) else 201

    def _known(self, before: Name) -> int | None:
        return next((number for number, digest in before.versions.items() if digest == self.content.digest), None)


@dataclass(frozen=True)
class Move:
    alias: str
    version: int
    kind = "move"

    def send(self, client: httpx.Client, name: str) -> httpx.Response:
        return client.put(f"/v1/adapters/{name}/aliases/{self.alias}", json={"version": self.version})

    def after(self, before: Name) -> Name:
        return replace(before, aliases={**before.aliases, self.alias: self.version})

    def status(self, before: Name) -> int:
        return 200


@dataclass(frozen=True)
class Remove:
    """One version, or with None the whole name."""

    version: int | None
    kind = "delete"

    def send(self, client: httpx.Client, name: str) -> httpx.Response:
        return client.delete(f"/v1/adapters/{name}", params={} if self.version is None else {"version": self.version})

    def after(self, before: Name) -> Name:
        if self.version is not None and before.held(self.version):
            return before
        left = {number: digest for number, digest in before.versions.items() if self.version not in (None, number)}
        if not left:
            return Name(highest=before.highest)
        aliases = dict(before.aliases)
        if aliases[LATEST] == self.version:
            aliases[LATEST] = max(left)
        return Name(left, aliases, before.highest)

    def status(self, before: Name) -> int:
        return 409 if self.version is not None and before.held(self.version) else 200


def random_change(rng: Random, before: Name, contents: Sequence[Content]) -> Change:
    """Any that makes sense now; of a version that an alias holds, also the delete that must be refused."""
    numbers = list(before.versions)
    makers: list[Callable[[], Change]] = [
        lambda: Put(rng.choice(contents), rng.choice([None, None, *ALIASES])),
        lambda: Move(rng.choice([LATEST, *ALIASES]), rng.choice(numbers)),
        lambda: Remove(rng.choice(numbers)),
        lambda: Remove(None),
    ]
    weights = [0, 0, 1, 1] if len(numbers) >= MOST else [8, 6, 4, 1] if numbers else [1, 0, 0, 0]
    return rng.choices(makers, weights)[0]()

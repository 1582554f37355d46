"""What a `model` in a request turns out to be: the base or one version of an adapter."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cdvft.backbone import BaseInfo

from cdvft_server.errors import ApiError
from cdvft_server.exceptions import NotFound, StoreUnavailable
from cdvft_server.naming import AdapterRef, BaseRef, parse_model
from cdvft_server.service.flights import Flight, landing_on_error
from cdvft_server.service.parts import Parts
from cdvft_server.service.stored import check_whole
from cdvft_server.store import Account, Unchanged, VersionRow

__all__ = ["STALE", "Target", "Targets", "adapter_only", "generation_only"]

STALE = {"x-adapter-stale": "1"}


@dataclass(frozen=True)
class Target:
    """`row` is None for the base. `name` is as the caller would write it: with the tenant if it is another's.
    `stale`: the database is away, this is what the name meant when it was last asked."""

    name: str
    digest: str
    row: VersionRow | None = None
    stale: bool = False

    @property
    def key(self) -> str:
        """What caches know it by."""
        return self.digest if self.row is None else self.row.key

    @property
    def task(self) -> str:
        """ "base", "lm", "classification" or "regression"."""
        return "base" if self.row is None else str(self.summary["task"])

    @property
    def summary(self) -> dict[str, Any]:
        return {} if self.row is None else self.row.summary

    @property
    def public(self) -> bool:
        return self.row is not None and self.row.public

    def account(self, tenant: str, base_digest: str) -> Account:
        """Where the tenant's use of it is written; the name is the adapter's, without alias or version."""
        version = 0 if self.row is None else self.row.version
        return Account(tenant, self.name, version, self.digest, base_digest)

    def headers(self, mode: str) -> dict[str, str]:
        """Of an answer; `mode` as `mode_of` has it."""
        headers = {"x-adapter": self.name, "x-adapter-digest": self.digest, "x-adapter-mode": mode}
        if self.row is not None:
            headers["x-adapter-version"] = str(self.row.version)
        return headers | STALE if self.stale else headers


class Targets:
    """Looks names up, and keeps count of who uses what. While the database is away, `use` goes by what it said last."""

    def __init__(self, parts: Parts) -> None:
        self._base, self._store, self._workers = parts.base, parts.store, parts.workers
        self._flights, self._hits, self._last_known = parts.flights, parts.hits, parts.last_known
        self._unchanged: Unchanged[tuple[str, AdapterRef], Target] = Unchanged(parts.store.changes)

    async def look_up(self, tenant: str, model: str) -> Target:
        """For `/v1/models`: nothing is used. Raises ModelNotFound, NotFound, AmbiguousDigest, CorruptBlob."""
        ref = parse_model(model, self._base.name)
        return self._base_target() if isinstance(ref, BaseRef) else await self._workers.run(self._find, tenant, ref)

    async def use(self, tenant: str, models: Sequence[str]) -> tuple[dict[str, Target], list[Flight]]:
        """Each model's target, and a flight for each adapter that the caller must land; raises as `look_up`."""
        refs = {model: parse_model(model, self._base.name) for model in models}
        adapters = {model: ref for model, ref in refs.items() if isinstance(ref, AdapterRef)}
        flights = {model: self._flights.open(ref.tenant or tenant, ref.name) for model, ref in adapters.items()}
        with landing_on_error(flights.values()):
            found = await self._found(tenant, adapters)
        now = time.time()
        for model, target in found.items():
            if target.row is not None:
                flights[model].found(target.row.id)
                self._hits.count(target.row.id, now)
        return {model: found.get(model) or self._base_target() for model in refs}, list(flights.values())

    def _base_target(self) -> Target:
        return Target(self._base.name, self._base.digest)

    async def _found(self, tenant: str, refs: Mapping[str, AdapterRef]) -> dict[str, Target]:
        mark = self._unchanged.mark()
        same = {model: target for model, ref in refs.items() if (target := self._unchanged.get((tenant, ref)))}
        rest = {model: ref for model, ref in refs.items() if model not in same}
        if not rest:
            return same
        found = await self._workers.run(self._find_all, tenant, rest)
        for model, target in found.items():
            if not target.stale:
                self._unchanged.put((tenant, rest[model]), target, mark)
        return same | found

    def _find_all(self, tenant: str, refs: Mapping[str, AdapterRef]) -> dict[str, Target]:
        """Once the database does not answer, it is not asked again for the others."""
        found: dict[str, Target] = {}
        away: StoreUnavailable | None = None
        for model, ref in refs.items():
            try:
                if away is None:
                    found[model] = self._find(tenant, ref)
                    continue
            except StoreUnavailable as error:
                away = error
            row = self._last_known.get((tenant, ref))
            if row is None:
                raise away
            found[model] = self._target(tenant, row, stale=True)
        return found

    def _find(self, tenant: str, ref: AdapterRef) -> Target:
        asked = self._last_known.ask()
        try:
            row = self._store.resolve(tenant, ref, self._base.digest)
        except NotFound:
            self._last_known.forget(lambda key, _: key == (tenant, ref))
            raise
        check_whole(row)
        self._last_known.put((tenant, ref), row, asked)
        return self._target(tenant, row)

    def _target(self, tenant: str, row: VersionRow, *, stale: bool = False) -> Target:
        name = row.name if row.tenant == tenant else f"{row.tenant}/{row.name}"
        return Target(name, row.digest, row, stale)


def generation_only(target: Target, base: BaseInfo) -> None:
    """Refuse what cannot generate."""
    if base.family.kind == "encoder":
        raise ApiError(
            "wrong_task", f"the base {base.name} is an encoder and cannot generate; use /v1/classify", "model"
        )
    if target.task not in ("base", "lm"):
        raise ApiError(
            "wrong_task", f"adapter {target.name} is a {target.task} adapter, not lm; use /v1/classify", "model"
        )


def adapter_only(target: Target) -> None:
    """Refuse what has no head."""
    if target.task == "base":
        raise ApiError("wrong_task", f"the base {target.name} has no head to classify with; name an adapter", "model")
    if target.task == "lm":
        raise ApiError("wrong_task", f"adapter {target.name} is an lm adapter; use /v1/completions", "model")

"""From an uploaded form, or a folder, to a stored version: read, validate, prove, store."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from cdvft.adapter import Adapter
from cdvft.checkpoint import AdapterFiles, freeze, read_adapter
from cdvft.errors import InvalidAdapter, InvalidData
from cdvft.prepared import PreparedAdapter, prepare_adapter
from cdvft.selftest import probe_sites

from cdvft_server.answers import SelfTest
from cdvft_server.archive import ArchiveLimits, read_archive
from cdvft_server.config import ServeConfig
from cdvft_server.errors import ApiError, invalid, unavailable
from cdvft_server.naming import check_name
from cdvft_server.service.access import Caller
from cdvft_server.service.parts import Parts
from cdvft_server.service.pins import Pins
from cdvft_server.service.stored import Summary, is_whole
from cdvft_server.store import NewVersion, VersionRow

__all__ = ["MAX_ERROR", "Stored", "UploadForm", "Uploads"]

MAX_ERROR = 1e-3  # of apply(x) against the float64 dense dW x, relative


@dataclass(frozen=True)
class UploadForm:
    """`config` and `weights`, or `archive`, or `files` (from a folder)."""

    name: str
    alias: str | None = None
    public: bool | None = None
    description: str | None = None
    labels: list[str] | None = None
    config: BinaryIO | None = None
    weights: BinaryIO | None = None
    archive: BinaryIO | None = None
    files: AdapterFiles | None = None


@dataclass(frozen=True)
class Stored:
    """`created` False: the name had this content already. `ignored` are members of the archive that were not read."""

    row: VersionRow
    created: bool
    ignored: list[str]


class Uploads:
    def __init__(self, parts: Parts, pins: Pins) -> None:
        self._config, self._base, self._engine, self._pool = parts.config, parts.base, parts.engine, parts.pool
        self._store, self._templates, self._workers = parts.store, parts.templates, parts.workers
        self._pins, self._running = pins, Counter[str]()

    @contextmanager
    def turn(self, caller: Caller) -> Iterator[None]:
        """One upload, from its first byte to its answer. Who has a key may have as many as are left free for others.

        Raises ApiError overloaded.
        """
        running, own = self._running.total(), self._running[caller.tenant]
        free = self._config.max_uploads - running
        if free <= 0:
            raise unavailable("overloaded", f"{running} uploads run already; try again in a second")
        if caller.key_id is not None and own >= free:
            message = f"{own} uploads of this tenant run already, {free} are left to others; try again in a second"
            raise unavailable("overloaded", message)
        self._running[caller.tenant] += 1
        try:
            yield
        finally:
            self._running[caller.tenant] -= 1
            self._running += Counter()  # forgets those that have none

    async def put(self, tenant: str, form: UploadForm) -> Stored:
        """Raises ApiError and whatever `faults.translate` knows; then nothing was stored."""
        stored = await self._workers.run_long_for(tenant, self.put_now, tenant, form)
        if stored.row.pinned:
            await self._pins.follow(tenant, form.name)
        return stored

    def put_now(self, tenant: str, form: UploadForm) -> Stored:
        """The same in this thread."""
        new = self.prove(form)
        row, created = self._store.put_version(
            tenant, form.name, new, alias=form.alias, public=form.public, description=form.description
        )
        if not is_whole(row):
            row = self._store.mend(row, new)
        return Stored(row, created, new.summary["ignored_files"])

    def prove(self, form: UploadForm) -> NewVersion:
        """Everything short of storing it; raises as `put`."""
        self._check_form(form)
        files, ignored = self._read(form)
        return self._prove(files, form.labels, ignored)

    def read(self, files: AdapterFiles, labels: Sequence[str] | None = None) -> Adapter:
        """The adapter in the files, under this server's limits. Raises InvalidAdapter."""
        return read_adapter(
            files,
            self._base,
            labels,
            max_header_bytes=self._config.max_header_bytes,
            max_labels=self._config.max_labels,
        )

    def _check_form(self, form: UploadForm) -> None:
        check_name("adapter", form.name)
        if form.name == self._base.name:
            raise ApiError("conflict", f"{form.name!r} is the base's own name; choose another", "name")
        if form.alias is not None:
            check_name("alias", form.alias)
        if form.description is not None and len(form.description) > self._config.max_description:
            raise _beyond("description", len(form.description), "characters", self._config.max_description)
        if "\0" in (form.description or ""):
            raise invalid("description has a NUL character; leave it out", "description")
        if form.labels is not None and len(form.labels) > self._config.max_labels:
            raise _beyond("labels", len(form.labels), "labels", self._config.max_labels)

    def _read(self, form: UploadForm) -> tuple[AdapterFiles, list[str]]:
        if form.files is not None:
            return form.files, []
        if form.archive is not None:
            return read_archive(form.archive, _archive_limits(self._config))
        if form.config is None or form.weights is None:
            raise ApiError("invalid_request", "give config and weights, or archive")
        config = _read_part(form.config, "config", self._config.max_header_bytes)
        return AdapterFiles(config, _read_part(form.weights, "weights", self._config.max_weights_bytes)), []

    def _prove(self, files: AdapterFiles, labels: list[str] | None, ignored: list[str]) -> NewVersion:
        adapter = self.read(files, labels)
        self._check_template(adapter.spec.template)
        prepared = prepare_adapter(adapter)
        self._check_size(prepared)
        error = probe_sites(adapter, prepared)
        if not error <= MAX_ERROR:
            raise InvalidAdapter(
                f"self-test: the served form differs from the dense one by {error:.2g} (relative), "
                f"at most {MAX_ERROR:g} is accepted; are there extremely large or small values?"
            )
        self._engine.probe(prepared)
        spec = adapter.spec
        summary = Summary(
            method=spec.method,
            task=spec.task,
            labels=None if spec.labels is None else list(spec.labels),
            max_length=spec.max_length,
            template=spec.template,
            num_parameters=adapter.num_parameters,
            head_parameters=adapter.head_parameters,
            sites=sorted(site.name for site in spec.sites),
            base_model=self._base.name,
            base_verified=adapter.base_verified,
            self_test=SelfTest(max_error=error),
            ignored_files=ignored,
        )
        return NewVersion(freeze(files, adapter), adapter.digest, self._base.digest, labels, summary.model_dump())

    def _check_size(self, prepared: PreparedAdapter) -> None:
        """What memory without anything else in it could not hold would never answer."""
        budget = self._pool.stats().budget_bytes
        if prepared.least_memory > budget:
            raise ApiError(
                "too_large",
                f"the adapter takes {prepared.least_memory} bytes of adapter memory, there are {budget} "
                "(--adapter-memory)",
            )

    def _check_template(self, template: str | None) -> None:
        """Compile it, not run it, and in the process that may be killed: compiling evaluates constants."""
        if template is None:
            return
        try:
            self._templates.render("{% if false %}" + template + "{% endif %}", [], bos_token="", eos_token="")
        except InvalidData as error:
            raise InvalidAdapter(f"chat_template.jinja: {error}") from None


def _read_part(part: BinaryIO, name: str, limit: int) -> bytes:
    data = part.read(limit + 1)
    if len(data) > limit:
        raise ApiError("too_large", f"{name} is larger than {limit} bytes", name)
    return data


def _archive_limits(config: ServeConfig) -> ArchiveLimits:
    return ArchiveLimits(
        weights=config.max_weights_bytes,
        frozen=config.max_weights_bytes,
        expansion=config.expanded_bytes,
        members=config.max_archive_members,
        config=config.max_header_bytes,
    )


def _beyond(field: str, size: int, unit: str, limit: int) -> ApiError:
    return ApiError("too_large", f"{field} has {size} {unit}, at most {limit} are accepted", field)

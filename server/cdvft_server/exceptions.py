"""What naming, store, archive and template workers refuse. Knows no HTTP: `errors.py` gives each its status."""

from collections.abc import Iterable

__all__ = [
    "AmbiguousDigest",
    "BadArchive",
    "Conflict",
    "CorruptBlob",
    "InvalidName",
    "ModelNotFound",
    "NotFound",
    "QuotaExceeded",
    "StoreError",
    "StoreUnavailable",
    "TemplateWorkerFailed",
    "TooLarge",
    "UnknownKey",
    "UnknownTenant",
    "UnsupportedDatabase",
]


class ModelNotFound(ValueError):
    """A `model` that no adapter can have."""


class InvalidName(ValueError):
    """An adapter, alias or tenant name that breaks the rule for names."""


class BadArchive(ValueError):
    """An upload that is no readable archive, or one with members that no adapter needs: links, devices, `..`."""


class TooLarge(ValueError):
    """A limit that was exceeded, by a length in a header or by what was really there."""


class StoreError(Exception):
    """Base of the store's errors."""


class NotFound(StoreError):
    """No such name, version, alias or digest for this tenant and base."""


class UnknownTenant(NotFound):
    """No such tenant, or no longer."""


class UnknownKey(NotFound):
    """No key has this id."""


class QuotaExceeded(StoreError):
    """An upload that would leave its tenant with more than it may have."""


class AmbiguousDigest(StoreError):
    """A digest prefix that several versions of the name share."""


class Conflict(StoreError):
    """A change that an alias forbids; `aliases` are those in the way."""

    def __init__(self, message: str, aliases: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.aliases = tuple(aliases)


class CorruptBlob(StoreError):
    """Stored bytes that no longer have the hash they were stored under."""


class StoreUnavailable(StoreError):
    """The database does not answer or cannot be written: locked, full, read-only, gone."""


class UnsupportedDatabase(StoreError):
    """A database that this version cannot use: another kind, another program's, or a newer schema."""


class TemplateWorkerFailed(RuntimeError):
    """A template worker process that does not start."""

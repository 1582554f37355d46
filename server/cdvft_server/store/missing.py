"""What to say where a name, a version, an alias or a digest is not there."""

from collections.abc import Iterable, Sequence

from cdvft_server.exceptions import NotFound
from cdvft_server.naming import AdapterRef, Alias, DigestPrefix, Latest, Version
from cdvft_server.store.rows import LATEST, VersionRow

__all__ = ["no_adapter", "not_there"]

SHOWN = 10  # aliases or versions of one message


def no_adapter(name: str, version: int | None = None) -> NotFound:
    """The caller's own adapter, or that version of it."""
    return NotFound(
        f"there is no adapter {name!r}" if version is None else f"adapter {name!r} has no version {version}"
    )


def not_there(ref: AdapterRef, rows: Sequence[VersionRow]) -> NotFound:
    """Which part of the reference is wrong. `rows`: all versions of its adapter that the caller may see."""
    name = repr(ref.name if ref.tenant is None else f"{ref.tenant}/{ref.name}")
    if not rows or isinstance(ref.selector, Latest):
        return NotFound(f"there is no adapter {name} on this base; GET /v1/models lists those there are")
    aliases = rows[0].aliases
    there = f"there are version{'' if len(rows) == 1 else 's'} {_some(str(row.version) for row in rows)}"
    match ref.selector:
        case Version(version):
            return NotFound(f"adapter {name} has no version {version} (latest is {aliases[LATEST]}); {there}")
        case Alias(alias):
            return NotFound(f"adapter {name} has no alias {alias!r}; there are {_some(sorted(aliases))}")
        case DigestPrefix(prefix):
            return NotFound(f"adapter {name} has no version whose digest begins with {prefix}; {there}")


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:SHOWN]) + (", ..." if len(listed) > SHOWN else "")

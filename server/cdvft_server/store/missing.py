"""What to say where a name, a version, an alias or a digest is not there."""

from collections.abc import Iterable, Sequence

from cdvft_server.exceptions import NotFound
from cdvft_server.naming import AdapterRef, Alias, DigestPrefix, Latest, Version
from cdvft_server.store.rows import LATEST, VersionRow

__all__ = ["no_adapter", "not_there"]

SHOWN = 10  # aliases or versions of one message


def no_adapter(name: str, version: int | None = None, others: Sequence[int] = ()) -> NotFound:
    """The caller's own adapter, or that version of it; `others` are there."""
    if version is None:
        return NotFound(f"there is no adapter {name!r}")
    there = f"; {_versions(others)}" if others else ""
    return NotFound(f"adapter {name!r} has no version {version}{there}")


def not_there(ref: AdapterRef, rows: Sequence[VersionRow]) -> NotFound:
    """Which part of the reference is wrong. `rows`: all versions of its adapter that the caller may see."""
    name = repr(ref.name if ref.tenant is None else f"{ref.tenant}/{ref.name}")
    if not rows or isinstance(ref.selector, Latest):
        return NotFound(f"there is no adapter {name} on this base; GET /v1/models lists those there are")
    aliases = rows[0].aliases
    there = _versions([row.version for row in rows])
    match ref.selector:
        case Version(version):
            return NotFound(f"adapter {name} has no version {version} (latest is {aliases[LATEST]}); {there}")
        case Alias(alias):
            return NotFound(f"adapter {name} has no alias {alias!r}; there are {_some(sorted(aliases))}")
        case DigestPrefix(prefix):
            return NotFound(f"adapter {name} has no version whose digest begins with {prefix}; {there}")


def _versions(numbers: Sequence[int]) -> str:
    return f"there {'is version' if len(numbers) == 1 else 'are versions'} {_some(map(str, numbers))}"


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:SHOWN]) + (", ..." if len(listed) > SHOWN else "")

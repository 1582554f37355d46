"""An uploaded zip or tar.gz to an adapter's files. Nothing is unpacked to disk, what is not needed stays unread."""

import io
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import BinaryIO

from cdvft.errors import InvalidAdapter
from cdvft.files import CONFIG_NAME, FIELDS, WEIGHTS_NAME, AdapterFiles

from cdvft_server.exceptions import BadArchive, TooLarge
from cdvft_server.tarball import TarMember, tar_members
from cdvft_server.zipball import ZipMember, zip_members

__all__ = ["ArchiveLimits", "read_archive"]

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
Parts = tuple[str, ...]  # a member's path: its folders and its name
Member = TarMember | ZipMember


@dataclass(frozen=True)
class ArchiveLimits:
    """In bytes, and `members` by number. `expansion` counts everything that must be expanded to read the archive."""

    weights: int = 256 << 20
    expansion: int = 512 << 20
    members: int = 64
    config: int = 1 << 20
    template: int = 16 << 10
    frozen: int = 256 << 20

    def of(self, name: str) -> int:
        return int(getattr(self, FIELDS[name]))


def read_archive(data: BinaryIO | bytes, limits: ArchiveLimits | None = None) -> tuple[AdapterFiles, list[str]]:
    """The adapter's files, byte for byte, and the paths of the other files, in the archive's order.

    Raises BadArchive (no readable zip or tar.gz, or members that no adapter needs: links, devices, absolute paths,
    `..`, duplicates, encryption), TooLarge, InvalidAdapter (readable, but without one adapter's config and weights).
    """
    limits = limits or ArchiveLimits()
    members = _opener(io.BytesIO(data) if isinstance(data, bytes) else data, limits)
    listed = _listed(members(), limits)
    root = _root(listed)
    wanted = {(*root, name): name for name in FIELDS if (*root, name) in listed}
    contents = {
        wanted[parts]: _content(member, limits.of(wanted[parts]))
        for member in members()
        if not member.folder and (parts := _parts(member.path)) in wanted
    }
    return AdapterFiles.of(contents), [path for parts, path in listed.items() if parts not in wanted]


def _opener(file: BinaryIO, limits: ArchiveLimits) -> Callable[[], Iterable[Member]]:
    """Iterates over the members from the start, each time it is called."""
    file.seek(0)
    magic = file.read(4)
    reader: Callable[[BinaryIO, int], Iterable[Member]]
    if magic in (b"PK\3\4", b"PK\5\6"):
        reader = zip_members
    elif magic[:2] == b"\x1f\x8b":
        reader = tar_members
    else:
        raise BadArchive("the archive is neither a zip nor a tar.gz file")

    def members() -> Iterable[Member]:
        file.seek(0)
        return reader(file, limits.expansion)

    return members


def _listed(members: Iterable[Member], limits: ArchiveLimits) -> dict[Parts, str]:
    """Every file's path, once all members were checked."""
    listed: dict[Parts, str] = {}
    for number, member in enumerate(members, start=1):
        if number > limits.members:
            raise TooLarge(f"the archive has more than {limits.members} members")
        parts = _parts(member.path)
        if member.folder:
            continue
        if parts in listed or not parts:
            raise BadArchive(f"the archive has two members {member.path[:200]!r}" if parts else "a member has no name")
        listed[parts] = member.path
    return listed


def _parts(path: str) -> Parts:
    slashed = path.replace("\\", "/")
    parts = tuple(part for part in slashed.split("/") if part not in ("", "."))
    if slashed.startswith("/") or re.match(r"[A-Za-z]:", slashed):
        raise BadArchive(f"member {path[:200]!r} of the archive has an absolute path; use paths relative to its top")
    if ".." in parts:
        raise BadArchive(f"member {path[:200]!r} of the archive has '..' in its path; use paths below its top")
    return parts


def _root(listed: Mapping[Parts, str]) -> Parts:
    """The folder of the adapter: the top if any of its files is there, else the one folder that has them."""
    found = {parts[:-1] for parts in listed if parts[-1] in (CONFIG_NAME, WEIGHTS_NAME)}
    roots = [root for root in found if len(root) <= 1]
    if () in roots:
        root: Parts = ()
    elif len(roots) == 1:
        root = roots[0]
    elif roots:
        names = ", ".join(sorted(f"{root[0][:100]}/" for root in roots)[:5])
        raise InvalidAdapter(f"the archive has several adapters ({names}); upload one at a time")
    else:
        deeper = f", not in {'/'.join(min(found))[:200]}/" if found else ""
        raise InvalidAdapter(f"the archive has no {CONFIG_NAME} at its top or in one folder{deeper}")
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if (*root, name) not in listed:
            raise InvalidAdapter(f"the archive has no {'/'.join((*root, name))[:200]}{_pickle_hint(listed, name)}")
    return root


def _pickle_hint(listed: Mapping[Parts, str], name: str) -> str:
    pickles = [path for parts, path in listed.items() if parts[-1].endswith(PICKLES)]
    if name != WEIGHTS_NAME or not pickles:
        return ""
    return f"; {pickles[0][:200]!r} is a pickle and is not read: save with safe_serialization=True"


def _content(member: Member, limit: int) -> bytes:
    content = io.BytesIO()
    if member.size > limit:
        raise TooLarge(f"{member.path[:200]} has {member.size} bytes; at most {limit} are allowed")
    for chunk in member.chunks():
        content.write(chunk)
    return content.getvalue()

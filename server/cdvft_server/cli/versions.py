"""`cdvft alias`, `unalias`, `pin`, `unpin`, `download`: which version a name means, where it stays, and its files."""

import io
import zipfile
from pathlib import Path

import click
from cdvft.files import FIELDS, AdapterFiles, write_folder
from cdvft_client import Adapter, Client

from cdvft_server.cli.asking import AS_JSON, asks, print_json

__all__ = ["alias", "download", "pin", "unalias", "unpin"]


@asks
@click.argument("name")
@click.argument("pointer", metavar="ALIAS")
@click.argument("version", type=click.IntRange(min=1))
@AS_JSON
def alias(client: Client, *, name: str, pointer: str, version: int, as_json: bool) -> None:
    """Point NAME@ALIAS at a version: promote it, or roll back. `latest` can be moved too."""
    _tell(client.set_alias(name, pointer, version), as_json)


@asks
@click.argument("name")
@click.argument("pointer", metavar="ALIAS")
@AS_JSON
def unalias(client: Client, *, name: str, pointer: str, as_json: bool) -> None:
    """Remove the pointer NAME@ALIAS, not the version."""
    _tell(client.delete_alias(name, pointer), as_json)


@asks
@click.argument("name")
@AS_JSON
def pin(client: Client, *, name: str, as_json: bool) -> None:
    """Keep what NAME's latest is on the device, now and after a restart; later versions take its place."""
    _tell_pinned(client.pin(name), as_json)


@asks
@click.argument("name")
@AS_JSON
def unpin(client: Client, *, name: str, as_json: bool) -> None:
    """Let NAME leave the device when others need the room."""
    _tell_pinned(client.unpin(name), as_json)


@asks
@click.argument("name", metavar="NAME[@VERSION|@ALIAS]")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder, or a file that ends in .zip; a folder NAME if left out."
)
def download(client: Client, *, name: str, out: Path | None) -> None:
    """Fetch an adapter's files as they were uploaded."""
    name, _, selector = name.partition("@")
    out = out or Path(name)
    packed = out.suffix.lower() == ".zip"
    if out.exists() and (packed or not out.is_dir() or any(out.iterdir())):
        raise click.UsageError(f"--out {out} is there already; give a new folder, or a new file that ends in .zip")
    version = _version(client, name, selector) if selector else None
    content = client.download(name, version, to=out if packed else None)
    if not packed:
        write_folder(out, _files(content))
    click.echo(f"{name}{f' version {version}' if version else ''} is in {out}")


def _files(content: bytes) -> AdapterFiles:
    """Those that an adapter has: nothing else that an archive may name is written."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return AdapterFiles.of({name: archive.read(name) for name in FIELDS if name in archive.namelist()})


def _version(client: Client, name: str, selector: str) -> int:
    """The number that VERSION, ALIAS or sha256:PREFIX means. Raises UsageError, and NotFoundError as the server."""
    if selector.isascii() and selector.isdecimal():
        return int(selector)
    if selector.startswith("sha256:"):
        root = client.model(f"{name}@{selector}").root
        return max(version.version for version in client.versions(name) if version.digest == root)
    aliases = client.adapter(name).aliases
    if selector not in aliases:
        raise click.UsageError(f"{name} has no alias {selector!r}; there are {', '.join(sorted(aliases))}")
    return aliases[selector]


def _tell_pinned(adapter: Adapter, as_json: bool) -> None:
    if as_json:
        print_json(adapter.raw)
        return
    stays = "stays on the device" if adapter.pinned else "may leave the device"
    click.echo(f"{adapter.name} version {adapter.version} {stays}")


def _tell(adapter: Adapter, as_json: bool) -> None:
    if as_json:
        print_json(adapter.raw)
        return
    pointers = (f"{pointer} is version {version}" for pointer, version in sorted(adapter.aliases.items()))
    click.echo(f"{adapter.name}: {', '.join(pointers)}")

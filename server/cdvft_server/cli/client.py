"""The commands that ask a running server, through cdvft_client."""

import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from cdvft_client import Adapter, ClassifiedRow, Client

from cdvft_server.cli.asking import AS_JSON, asks, print_json
from cdvft_server.cli.tables import size, table

__all__ = ["adapters", "classify", "complete", "push", "rm"]

ARCHIVES = (".zip", ".tar.gz", ".tgz")
PARTS = (".bin", ".json", ".safetensors")  # files of an adapter that are no upload alone


@asks
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, path_type=Path))
@click.option("--name", help="Name of the adapter; the folder's or archive's own if left out.")
@click.option("--alias", help="A pointer to move to this version besides latest.")
@click.option(
    "--public/--private", default=None, help="Whether other tenants may use it; else as it was, private at first."
)
@click.option("--description", help="A line about it.")
@click.option("--labels", help="A classifier's labels in the head's order, with commas, where its config has none.")
@AS_JSON
def push(
    client: Client,
    *,
    folder: Path,
    name: str | None,
    alias: str | None,
    public: bool | None,
    description: str | None,
    labels: str | None,
    as_json: bool,
) -> None:
    """Upload an adapter folder (or a zip or tar.gz); it can be used as soon as this returns."""
    if folder.is_file() and folder.suffix in PARTS:
        raise click.UsageError(f"{folder} is one file of an adapter; give its folder, or a zip or tar.gz of it")
    if folder.is_file() and not folder.name.endswith(ARCHIVES):
        raise click.UsageError(
            f"{folder} is no adapter; give a folder that `cdvft train` or PEFT wrote, or its archive"
        )
    if folder.is_file() and not name:
        name = re.sub(r"\.(zip|tar\.gz|tgz)$", "", folder.name)
    named = [label.strip() for label in labels.split(",")] if labels else None
    made = client.upload(folder, name=name, alias=alias, public=public, description=description, labels=named)
    if as_json:
        print_json(made.raw)
        return
    verb = "uploaded" if made.created else "unchanged:"
    seen = "; other tenants may use it" if made.public else ""
    click.echo(f"{verb} {made.name} version {made.version} ({_kind(made)}, {size(made.bytes)}){seen}")
    click.echo(made.digest)
    for remark in _remarks(made):
        click.echo(f"note: {remark}", err=True)


@asks
@AS_JSON
def adapters(client: Client, as_json: bool) -> None:
    """List the adapters, newest first."""
    found = list(client.adapters())
    if as_json:
        print_json([adapter.raw for adapter in found])
        return
    header = ("NAME", "VERSION", "METHOD", "TASK", "NUMBERS", "HEAD", "BYTES", "ALIASES", "CREATED", "DIGEST")
    click.echo(table(header, [_row(adapter) for adapter in found]))


@asks
@click.argument("name", metavar="NAME[@VERSION]")
@click.option("--yes", is_flag=True, help="Do not ask, where a whole name goes and somebody is there to ask.")
@AS_JSON
def rm(client: Client, name: str, yes: bool, as_json: bool) -> None:
    """Delete a whole name with all its versions and aliases, or one version of it."""
    name, at, version = name.partition("@")
    if at and not (version.isascii() and version.isdecimal()):
        raise click.UsageError(f"{version!r} is not a version's number; give NAME or NAME@2")
    if not at and not yes and sys.stdin.isatty():
        click.confirm(f"delete {_all_of(client, name)}?", abort=True, err=True)
    deleted = client.delete(name, int(version) if at else None)
    if as_json:
        print_json(deleted.raw)
    else:
        what = f"version {version} of {name}" if at else name
        freed = f"{size(deleted.bytes_freed)} freed" if deleted.bytes_freed else "its content is still used"
        click.echo(f"deleted {what}, {freed}")


@asks
@click.argument("name")
@click.argument("texts", metavar="TEXT...", nargs=-1, required=True)
@click.option("--pairs", is_flag=True, help="The texts are first and second of pairs, in turn.")
@click.option("--top-k", type=click.IntRange(min=1), help="Show this many labels of each text.")
@click.option("--raw-scores", is_flag=True, default=None, help="Logits instead of probabilities.")
@click.option("--truncate", is_flag=True, default=None, help="Cut what is longer than the adapter takes.")
@AS_JSON
def classify(
    client: Client,
    *,
    name: str,
    texts: tuple[str, ...],
    pairs: bool,
    top_k: int | None,
    raw_scores: bool | None,
    truncate: bool | None,
    as_json: bool,
) -> None:
    """Label or score texts with one adapter."""
    if pairs and len(texts) % 2:
        raise click.UsageError(f"--pairs needs an even number of texts, there are {len(texts)}")
    inputs: Any = list(zip(texts[::2], texts[1::2], strict=True)) if pairs else list(texts)
    answer = client.classify(name, inputs, top_k=top_k, raw_scores=raw_scores, truncate=truncate)
    if as_json:
        print_json(answer.raw)
        return
    shown = [" / ".join(pair) for pair in inputs] if pairs else texts
    click.echo("\n".join(_verdicts(answer.data, shown, top_k)))


@asks
@click.argument("name")
@click.argument("prompt")
@click.option("--chat", is_flag=True, help="The prompt is a user's message.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Most tokens to add.")
@click.option("--temperature", type=click.FloatRange(0, 100), help="0 is greedy; 1 if left out.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="Choose among the likeliest, up to this sum.")
@click.option("--top-k", type=click.IntRange(min=0), help="Choose among this many; 0 is all.")
@click.option("--seed", type=int, help="The same seed gives the same text.")
@click.option("--stop", multiple=True, help="Text to end before; up to four.")
@AS_JSON
def complete(
    client: Client, *, name: str, prompt: str, chat: bool, stop: tuple[str, ...], as_json: bool, **fields: Any
) -> None:
    """Continue a prompt with an adapter, or with the base by its own name."""
    fields = {key: value for key, value in fields.items() if value is not None}
    if stop:
        fields["stop"] = list(stop)
    asked: Any = [{"role": "user", "content": prompt}] if chat else prompt
    if as_json:
        answer = client.chat(name, asked, **fields) if chat else client.complete(name, asked, **fields)
        print_json(answer.raw)
        return
    stream = client.chat_stream(name, asked, **fields) if chat else client.complete_stream(name, asked, **fields)
    with stream:
        for chunk in stream:
            click.echo(chunk.text, nl=False)
    click.echo()


def _all_of(client: Client, name: str) -> str:
    """What goes with a name."""
    aliases = ", ".join(sorted(client.adapter(name).aliases.keys() - {"latest"}))
    count = len(list(client.versions(name)))
    pointed = f" and its aliases {aliases}" if aliases else ""
    return f"{name}, all of its {count} versions{pointed}" if count > 1 else f"{name}{pointed}"


def _verdicts(rows: Sequence[ClassifiedRow], texts: Sequence[str], top_k: int | None) -> list[str]:
    lines = []
    for row, text in zip(rows, texts, strict=True):
        best = [(score.label, score.score) for score in row.scores[: top_k or 1]]
        verdict = ", ".join(f"{label} {score:.3f}" for label, score in best) or f"{row.score:.4f}"
        lines.append(f"{verdict}\t{text}")
    return lines


def _row(adapter: Adapter) -> tuple[object, ...]:
    aliases = ", ".join(f"{alias}={version}" for alias, version in sorted(adapter.aliases.items()))
    created = datetime.fromtimestamp(adapter.created_at, UTC).strftime("%Y-%m-%d %H:%M")
    return (
        adapter.name,
        adapter.version,
        adapter.method,
        adapter.task,
        adapter.num_parameters,
        adapter.head_parameters,
        adapter.bytes,
        aliases,
        created,
        adapter.digest[:19],
    )


def _remarks(made: Adapter) -> list[str]:
    remarks = []
    if made.labels and all(label == f"LABEL_{k}" for k, label in enumerate(made.labels)):
        remarks.append("its config names no labels, they are LABEL_0, ...; --labels a,b,c names them")
    if not made.base_verified:
        remarks.append("its config has no base_digest: it fits this base by its shapes, which is all that was checked")
    return remarks


def _kind(adapter: Adapter) -> str:
    labels = f" with {len(adapter.labels)} labels" if adapter.labels else ""
    return f"{adapter.method} {adapter.task}{labels}, {adapter.num_parameters:,} numbers"

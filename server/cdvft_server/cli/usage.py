"""`cdvft usage`: what was used, as a table, JSON or CSV."""

from datetime import UTC, datetime
from typing import Any

import click
from cdvft_client import Client, UsageEntry

from cdvft_server.cli.asking import AS_JSON, asks, print_json
from cdvft_server.cli.tables import table

__all__ = ["usage"]

HEADER = "FROM TENANT ADAPTER VERSION REQUESTS FAILED CANCELLED PROMPT COMPLETION SECONDS".split()
MOMENT = "Unix seconds, or ISO 8601 such as 2026-11-29 or 2026-11-29T14:00:00Z"


@asks
@click.option("--start", metavar="WHEN", help=f"{MOMENT}.")
@click.option("--end", metavar="WHEN", help="The same: up to then.")
@click.option(
    "--group-by", metavar="WHAT", help="Some of hour, day, adapter, version, tenant, with commas; else adapter."
)
@click.option("--adapter", metavar="NAME", help="That one only.")
@click.option("--tenant", help="Another tenant, or * for all: with an admin's key.")
@click.option("--csv", "as_csv", is_flag=True, envvar="CDVFT_CSV", help="Print CSV.")
@AS_JSON
def usage(client: Client, *, as_csv: bool, as_json: bool, **fields: Any) -> None:
    """Show requests, tokens and engine seconds that were used."""
    if as_csv and as_json:
        raise click.UsageError("give --csv or --json, not both")
    if as_csv:
        click.echo(client.usage_csv(**fields).decode(), nl=False)
        return
    found = list(client.usage(**fields))
    if as_json:
        print_json([entry.raw for entry in found])
        return
    header = (
        "FROM",
        "TENANT",
        "ADAPTER",
        "VERSION",
        "REQUESTS",
        "FAILED",
        "CANCELLED",
        "PROMPT",
        "COMPLETION",
        "SECONDS",
    )
    click.echo(table(header, [_row(entry) for entry in found]))


def _row(entry: UsageEntry) -> tuple[object, ...]:
    when = "" if entry.start is None else datetime.fromtimestamp(entry.start, UTC).strftime("%Y-%m-%d %H:%M")
    return (
        when,
        entry.tenant or "",
        entry.adapter or "",
        str(entry.version or ""),
        entry.requests,
        entry.failed,
        entry.cancelled,
        entry.prompt_tokens,
        entry.completion_tokens,
        f"{entry.seconds:.3f}",
    )

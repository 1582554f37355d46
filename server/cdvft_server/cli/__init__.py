"""The command `cdvft`. Each subcommand is a module that is imported when it is called, so that `--help` is fast."""

from importlib.metadata import version

import click

from cdvft_server.cli.commands import LazyGroup

__all__ = ["main"]

COMMANDS = {
    "serve": ("serve", "Serve a base and its adapters over HTTP."),
    "train": ("train", "Train an adapter from JSON lines, CSV or TSV."),
    "push": ("client", "Upload an adapter folder to a server."),
    "adapters": ("client", "List a server's adapters."),
    "alias": ("versions", "Point NAME@ALIAS at a version: promote, or roll back."),
    "unalias": ("versions", "Remove NAME@ALIAS, not the version."),
    "pin": ("versions", "Keep an adapter on the device."),
    "unpin": ("versions", "Let an adapter leave the device again."),
    "download": ("versions", "Fetch an adapter's files."),
    "usage": ("usage", "Show what was used: requests, tokens, time."),
    "rm": ("client", "Delete an adapter, or one version of it."),
    "classify": ("client", "Label or score texts."),
    "complete": ("client", "Continue a prompt; the text comes as it is generated."),
    "tenants": ("tenants", "Who shares the server, and what each may have."),
    "keys": ("keys", "Make, list, rotate and revoke API keys."),
    "inspect": ("inspecting", "Show what an adapter folder holds and costs."),
    "compare": ("inspecting", "Show what several adapter folders cost, side by side."),
    "bench": ("bench", "Measure what adapters cost, and what others do with the same work."),
}
"""Name: (module in this package, the line in `cdvft --help`)."""

main = LazyGroup(
    "cdvft",
    COMMANDS,
    help="CDVFT adapters: train them, serve thousands from one frozen base, use them by name.",
    epilog="Every option has a variable: --max-length is CDVFT_MAX_LENGTH. What a command takes from one, it tells.",
)
main.params.append(
    click.Option(
        ["--version"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        help="Show the version.",
        callback=lambda context, option, wanted: _show_version(context) if wanted else None,
    )
)


def _show_version(context: click.Context) -> None:
    click.echo(f"cdvft {version('cdvft')}")
    context.exit()

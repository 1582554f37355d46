"""What the commands share that ask a running server through cdvft_client."""

import json
from collections.abc import Callable
from typing import Any

import click
import httpx
from cdvft_client import APIConnectionError, APITimeoutError, CDVFTError, Client

from cdvft_server.cli.commands import Command, reported

__all__ = ["AS_JSON", "asks", "connect", "print_json"]

AS_JSON = click.option("--json", "as_json", is_flag=True, envvar="CDVFT_JSON", help="Print the server's JSON.")
ELSEWHERE = "name another with --server or CDVFT_SERVER"


def asks(function: Callable[..., None]) -> click.Command:
    """A command with --server and --api-key, whose function gets the client first."""

    def call(server: str | None, api_key: str | None, **options: Any) -> None:
        with reported(CDVFTError, OSError, ValueError), connect(server, api_key) as client:
            try:
                function(client, **options)
            except APIConnectionError as error:
                raise click.ClickException(_unreached(error)) from None

    call.__doc__, call.__name__ = function.__doc__, function.__name__
    call.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
    for option in (
        click.option("--api-key", metavar="KEY", help="Key for a server that wants one."),
        click.option("--server", metavar="URL", help="The server; http://127.0.0.1:8000 if left out."),
    ):
        call = option(call)
    return click.command(function.__name__, cls=Command)(call)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))


def connect(server: str | None, api_key: str | None) -> Client:
    """Its complaints name the client's arguments: here they are options."""
    try:
        return Client(server, api_key=api_key)
    except ValueError as error:
        raise click.ClickException(
            str(error).replace("base_url (or", "--server (or").replace("api_key (or", "--api-key (or")
        ) from None


def _unreached(error: APIConnectionError) -> str:
    if isinstance(error.__cause__, httpx.ConnectError | httpx.ConnectTimeout):
        return f"{_plain(error).rstrip('?')}? If not, {ELSEWHERE}"
    return _plain(error)


def _plain(error: APIConnectionError) -> str:
    """Without the hint to the client's argument."""
    return str(error).removesuffix("; see timeout=") if isinstance(error, APITimeoutError) else str(error)

"""What the commands share that work on the store itself, whether a server runs on it or not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel, ValidationError

from cdvft_server.cli.commands import Command, reported
from cdvft_server.config import default_database
from cdvft_server.exceptions import InvalidName, StoreError
from cdvft_server.store import Store
from cdvft_server.store.urls import database_url, is_sqlite

__all__ = ["manages", "print_body", "validated"]


def manages(group: click.Group, name: str) -> Callable[[Callable[..., None]], click.Command]:
    """A command of the group with --database, whose function gets the store first."""

    def decorate(function: Callable[..., None]) -> click.Command:
        def call(database: str | None, **options: Any) -> None:
            with reported(StoreError, InvalidName):
                url = database or default_database()
                new = _has_no_file(url)
                store = Store.open(url)
                if new:
                    click.echo(f"there was no store at {url}: it was made", err=True)
                try:
                    function(store, **options)
                finally:
                    store.close()

        call.__doc__ = function.__doc__
        call.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
        url = click.option("--database", metavar="URL", help="The server's store; the default one if left out.")
        made: click.Command = group.command(name, cls=Command)(url(call))
        return made

    return decorate


def _has_no_file(database: str) -> bool:
    """Where a mistyped path is easily taken for the server's store. Raises UnsupportedDatabase."""
    url = database_url(database)
    return is_sqlite(url) and "uri" not in url.query and not Path(url.database or "").exists()


def validated(kind: type[BaseModel], given: dict[str, Any]) -> Any:
    """The options as the API takes them. Raises UsageError naming the one that is wrong."""
    try:
        return kind(**given)
    except ValidationError as error:
        found = error.errors()[0]
        message = found["msg"].removeprefix("Value error, ")
        raise click.UsageError(f"--{str(found['loc'][0]).replace('_', '-')}: {message}") from None


def print_body(body: BaseModel | list[BaseModel]) -> None:
    told = [each.model_dump() for each in body] if isinstance(body, list) else body.model_dump()
    click.echo(json.dumps(told, ensure_ascii=False, indent=2))

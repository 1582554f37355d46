"""`cdvft serve`: the options are ServeConfig's fields; it listens only once the base is proven."""

import logging
import sys
from collections.abc import Iterator
from threading import Thread
from typing import Any, get_origin

import click
from cdvft.errors import CdvftError
from pydantic import ValidationError

from cdvft_server.cli.announce import announcement
from cdvft_server.cli.commands import PREFIX, Command, reported
from cdvft_server.cli.early import check_early
from cdvft_server.config import ServeConfig, unused_variables
from cdvft_server.process import tune_process

__all__ = ["serve"]


class ServeCommand(Command):
    """Options from ServeConfig. An option for several values takes those that follow it: `--adapters A B`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += _options()

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        several = {name for p in self.params if isinstance(p, click.Option) and p.multiple for name in p.opts}
        return super().parse_args(ctx, list(_one_by_one(args, several)))


def _one_by_one(args: list[str], several: set[str]) -> Iterator[str]:
    """`--adapters A B` as `--adapters A --adapters B`."""
    option, taken = "", 0
    for arg in args:
        if arg.startswith("-"):
            option, taken = (arg if arg in several else ""), 0
        elif option:
            taken += 1
            if taken > 1:
                yield option
        yield arg


def _options() -> Iterator[click.Option]:
    for name, field in ServeConfig.model_fields.items():
        flag = field.annotation is bool
        several = get_origin(field.annotation) is tuple
        default = None if field.default_factory else field.default
        shown = f" [default: {default}]" if not flag and not several and default is not None else ""
        yield click.Option(
            [f"--{name.replace('_', '-')}"],
            is_flag=flag,
            multiple=several,
            default=None,
            metavar=None if flag else "VALUE",
            show_envvar=False,
            help=f"{field.description}.{shown}",
        )


@click.command(cls=ServeCommand)
def serve(**options: Any) -> None:
    """Serve a base and its adapters over HTTP. Ctrl-C stops it when running requests have ended."""
    config = _config({name: value for name, value in options.items() if value not in (None, (), False)})
    for name in unused_variables():
        click.echo(f"{name} is no setting of serve: not used", err=True)
    from cdvft_server.errors import ApiError, StartRefused
    from cdvft_server.exceptions import StoreError, TemplateWorkerFailed

    with reported(CdvftError, StartRefused, StoreError):
        check_early(config)
    tune_process()
    click.echo("loading the server ...", err=True)
    from transformers.utils import logging as transformers_logging

    from cdvft_server.logs import logging_to
    from cdvft_server.serving import serve as run

    transformers_logging.disable_progress_bar()
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
    with (
        reported(CdvftError, StartRefused, StoreError, ApiError, TemplateWorkerFailed, OSError),
        logging_to(sys.stderr, config.log_format, config.log_level),
    ):
        run(config, lambda url: _announce(url, config), log_config=None, access_log=False)


def _config(given: dict[str, Any]) -> ServeConfig:
    try:
        return ServeConfig(**given)
    except ValidationError as error:
        found = error.errors()[0]
        message = found["msg"].removeprefix("Value error, ")
        if not found["loc"]:
            raise click.UsageError(message) from None
        name = str(found["loc"][0])
        option = f"--{name.replace('_', '-')}" if name in given else f"{PREFIX}{name.upper()}"
        raise click.UsageError(f"{option}: {message}") from None


def _announce(url: str, config: ServeConfig) -> None:
    """Runs on the server's loop: what asks the server itself must be in another thread."""
    logging.getLogger("uvicorn.error").setLevel(logging.INFO)  # says what it waits for when it is stopped

    def tell() -> None:
        click.echo(announcement(url, embedded=config.base is None, database=config.database))

    Thread(target=tell, daemon=True).start()

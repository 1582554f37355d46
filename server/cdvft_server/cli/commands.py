"""What the subcommands share: lazy loading, environment variables for every option, errors as one line."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click
from click.core import ParameterSource

__all__ = ["Command", "LazyGroup", "reported"]

PREFIX = "CDVFT_"
UNTOLD = tuple(f"{PREFIX}{name}" for name in ("SERVER", "API_KEY", "DATABASE"))  # for all commands; two may be secret


class Command(click.Command):
    """Every option that has no variable of its own has `CDVFT_<OPTION>`. Which were taken is told on standard error."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for parameter in self.params:
            if isinstance(parameter, click.Option) and parameter.envvar is None and parameter.name:
                parameter.envvar = PREFIX + parameter.name.upper()

    def invoke(self, ctx: click.Context) -> Any:
        for parameter in self.params:
            taken = ctx.get_parameter_source(parameter.name or "") is ParameterSource.ENVIRONMENT
            if taken and parameter.envvar not in UNTOLD:
                value = ctx.params[parameter.name or ""]
                click.echo(f"{parameter.opts[0]} is {value} ({parameter.envvar})", err=True)
        return super().invoke(ctx)


class LazyGroup(click.Group):
    """Subcommands by (module, help line): a module is imported only when its command is called."""

    def __init__(self, name: str, commands: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(name, **kwargs)
        self.lazy = commands

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.lazy:
            return None
        module = import_module(f"cdvft_server.cli.{self.lazy[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self.lazy.items()])


@contextmanager
def reported(*kinds: type[BaseException]) -> Iterator[None]:
    """These exceptions end the command with one line on standard error and exit code 1."""
    try:
        yield
    except kinds as error:
        raise click.ClickException(" ".join(str(error).split()) or type(error).__name__) from None

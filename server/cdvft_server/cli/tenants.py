"""`cdvft tenants create|set|list|rm`: on the database, no server needed."""

from collections.abc import Callable
from typing import Any

import click
from pydantic import ByteSize, TypeAdapter, ValidationError

from cdvft_server.administration import LIMITS, TenantChange, TenantRequest, tenant_body
from cdvft_server.answers import TenantDeleted
from cdvft_server.cli.managing import manages, print_body, validated
from cdvft_server.naming import check_name
from cdvft_server.store import Store, TenantLimits

__all__ = ["tenants"]

NONE = "none"
SIZE = TypeAdapter(ByteSize)


def _limit(value: str) -> int | str:
    """A number, or `none` for no limit."""
    if value == NONE:
        return value
    if not (value.isascii() and value.isdecimal()):
        raise click.BadParameter(f"{value!r} is neither a number nor {NONE}")
    return int(value)


def _size(value: str) -> int | str:
    """Bytes, such as `10GiB`, or `none` for no limit."""
    if value == NONE:
        return value
    try:
        return int(SIZE.validate_python(value))
    except (ValidationError, ArithmeticError):
        raise click.BadParameter(f"{value!r} is neither a number of bytes, such as 10GiB, nor {NONE}") from None


KINDS: dict[str, Any] = {"weight": click.FloatRange(0.01, 100), "max_bytes": _size}


def _limits(function: Callable[..., None]) -> Callable[..., None]:
    for name in reversed((*LIMITS, "weight")):
        text = f"{TenantRequest.model_fields[name].description}."
        kind: Any = KINDS.get(name, _limit)
        function = click.option(f"--{name.replace('_', '-')}", type=kind, metavar="N", help=text)(function)
    return function


@click.group()
def tenants() -> None:
    """Who shares the server, and what each may have: no limits but the server's, unless they are given."""


@manages(tenants, "create")
@click.argument("name")
@_limits
def _create(store: Store, name: str, **options: Any) -> None:
    """Make a tenant."""
    asked: TenantRequest = validated(TenantRequest, {"name": check_name("tenant", name), **_given(options)})
    print_body(tenant_body(store.tenants.create(asked.name, TenantLimits(**asked.limits), asked.weight)))


@manages(tenants, "set")
@click.argument("name")
@_limits
def _set(store: Store, name: str, **options: Any) -> None:
    """Change the limits that are named, from the next request on; `none` lifts one."""
    asked: TenantChange = validated(TenantChange, _given(options))
    print_body(tenant_body(store.tenants.set(name, asked.changes)))


@manages(tenants, "list")
def _list(store: Store) -> None:
    """List the tenants with their limits and what they have, newest first."""
    print_body([tenant_body(row) for row in store.tenants.page()[0]])


@manages(tenants, "rm")
@click.argument("name")
@click.option("--with-adapters", is_flag=True, help="Delete its adapters with it.")
def _rm(store: Store, name: str, with_adapters: bool) -> None:
    """Remove a tenant and its keys; refused where it has adapters, unless they are to go too."""
    gone = store.tenants.remove(name, with_adapters=with_adapters)
    print_body(TenantDeleted(id=name, adapters_deleted=len({row.name for row in gone})))


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: None if value == NONE else value for name, value in options.items() if value is not None}

"""`cdvft keys create|list|rotate|revoke|allow-unauthenticated`: on the database, no server needed."""

import time

import click

from cdvft_server.administration import OVERLAP, KeyRequest, key_body
from cdvft_server.answers import Answer, KeyRotated, KeySecret
from cdvft_server.cli.managing import manages, print_body, validated
from cdvft_server.expiry import parse_expiry
from cdvft_server.store import Store

__all__ = ["keys"]

WHEN = "30m, 12h, 90d, 4w from now, or a date"


class KeysNeeded(Answer):
    authentication_required: bool


@click.group()
def keys() -> None:
    """API keys. From the first one on every server on this store asks for one."""


@manages(keys, "create")
@click.option("--tenant", metavar="NAME", required=True, help="Whose key it is.")
@click.option(
    "--scopes", default="infer,upload", show_default=True, help="What it may be used for: infer, upload, admin."
)
@click.option("--expires", metavar="WHEN", help=f"{WHEN}; never if left out.")
def _create(store: Store, tenant: str, scopes: str, expires: str | None) -> None:
    """Make a key: it is printed this once, under "key"."""
    now = int(time.time())
    wanted = [scope.strip() for scope in scopes.split(",")]
    asked: KeyRequest = validated(KeyRequest, {"tenant": tenant, "scopes": wanted})
    first = not store.keys.required()
    made, secret = store.keys.create(asked.tenant, asked.scopes, _expiry(expires, now), now)
    print_body(KeySecret(**key_body(made).model_dump(), key=secret))
    if first:
        click.echo("from now on every request on this store needs a key (cdvft keys allow-unauthenticated)", err=True)


@manages(keys, "list")
@click.option("--tenant", metavar="NAME", help="Only this tenant's.")
def _list(store: Store, tenant: str | None) -> None:
    """List the keys without their secrets, newest first."""
    print_body([key_body(row) for row in store.keys.page(tenant=tenant)[0]])


@manages(keys, "rotate")
@click.argument("id")
@click.option(
    "--overlap",
    type=click.IntRange(min=0),
    metavar="SECONDS",
    default=OVERLAP,
    show_default=True,
    help="How long the old key goes on.",
)
@click.option("--expires", metavar="WHEN", help=f"{WHEN}; if left out, after as long a life as the old one's.")
def _rotate(store: Store, id: str, overlap: int, expires: str | None) -> None:
    """Make a key that takes another's place: the old one goes on for a while, so that nothing stops."""
    now = int(time.time())
    made, secret, old = store.keys.rotate(id, overlap, _expiry(expires, now), now)
    print_body(KeyRotated(**key_body(made).model_dump(), key=secret, replaces=key_body(old)))


@manages(keys, "revoke")
@click.argument("id")
def _revoke(store: Store, id: str) -> None:
    """Let nobody in by this key any more, from the next request on."""
    print_body(key_body(store.keys.revoke(id, int(time.time()))))


@manages(keys, "allow-unauthenticated")
def _allow_unauthenticated(store: Store) -> None:
    """Ask for no key any more, until the next one is made: requests without one are the tenant `default`'s."""
    store.keys.allow_unauthenticated()
    print_body(KeysNeeded(authentication_required=store.keys.required()))


def _expiry(expires: str | None, now: int) -> int | None:
    try:
        return None if expires is None else parse_expiry(expires, now)
    except ValueError as error:
        raise click.UsageError(f"--expires: {error}") from None

"""What `cdvft serve` can refuse at once: checked before torch and the base are loaded, which takes long."""

import socket

import click
from cdvft.basefolder import family_at, local_folder

from cdvft_server.config import ServeConfig
from cdvft_server.seeds import adapter_folders

__all__ = ["check_early"]


def check_early(config: ServeConfig) -> None:
    """Address, database URL, adapter folders, the base's family.

    Raises ClickException, StartRefused, UnsupportedDatabase, UnsupportedBase.
    """
    from cdvft_server.store.urls import database_url

    _check_address(config.host, config.port)
    database_url(config.database)
    adapter_folders(config.adapters)
    folder = None if config.base is None else local_folder(config.base)
    if folder is not None:
        family_at(folder)


def _check_address(host: str, port: int) -> None:
    """Raises ClickException where the address cannot be listened on."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        reason = f"cannot listen on {host} port {port}: {error.strerror}"
        raise click.ClickException(f"{reason}; give another --port or --host") from None

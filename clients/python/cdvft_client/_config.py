"""What both clients are made from: arguments first, then the environment, then defaults."""

import os
from typing import TypedDict

import httpx

from ._version import __version__

DEFAULT_SERVER = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT = httpx.Timeout(600.0, connect=5.0)  # seconds
DEFAULT_RETRIES = 2


class HTTPSettings(TypedDict):
    base_url: httpx.URL
    headers: dict[str, str]
    timeout: httpx.Timeout


def settings(base_url: str | None, api_key: str | None, timeout: float | httpx.Timeout | None) -> HTTPSettings:
    """Raises ValueError for a base_url that is no http(s) URL and for a key that no header can carry."""
    headers = {"user-agent": f"cdvft-client/{__version__}"}
    key = api_key if api_key is not None else os.environ.get("CDVFT_API_KEY")
    if key:
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise ValueError("api_key (or CDVFT_API_KEY) has a blank, a line end or a character that is not ASCII")
        headers["authorization"] = f"Bearer {key}"
    url = _server(base_url or os.environ.get("CDVFT_SERVER") or DEFAULT_SERVER)
    return HTTPSettings(base_url=url, headers=headers, timeout=httpx.Timeout(timeout))


def retries(max_retries: int) -> int:
    if max_retries < 0:
        raise ValueError(f"max_retries is {max_retries}; it is 0 or more")
    return max_retries


def shown(url: httpx.URL) -> str:
    """The server without user name, password and query, for messages."""
    return f"{url.scheme}://{url.netloc.decode('ascii')}{url.path.rstrip('/')}"


def _server(given: str) -> httpx.URL:
    """The server's address; the `/v1` that OpenAI's clients want at its end may stay."""
    try:
        url = httpx.URL(given.strip())
    except httpx.InvalidURL as error:
        raise ValueError(f"base_url (or CDVFT_SERVER) {given!r} is not a URL: {error}") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"base_url (or CDVFT_SERVER) {given!r} is not like {DEFAULT_SERVER}")
    return url.copy_with(path=url.path.rstrip("/").removesuffix("/v1") + "/")

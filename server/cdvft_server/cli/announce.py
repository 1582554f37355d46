"""What a server says when it is ready: its address, and calls that work as pasted."""

import json
import os
import random
import shlex
from itertools import islice
from urllib.parse import urlsplit

from cdvft_client import Adapter, AuthenticationError, CDVFTError, Client
from sqlalchemy import make_url

from cdvft_server.addresses import is_loopback
from cdvft_server.config import default_database
from cdvft_server.demo.language import TOPICS, WRITERS, language

__all__ = ["announcement"]

PROMPT, TEXT = "Once upon a time", "This is the best day of the year."
MOST = 1000  # adapters to look at: they are asked for in pages
NO_KEY = "only this machine is listened to, and no key is needed until one is made"
ANYBODY = "no key is needed: whoever reaches it may use and change it, until a key is made"
NEEDED = "every request needs a key"
DEMO = "Demo"  # the description of the adapters that come with the embedded base


def announcement(url: str, *, embedded: bool, database: str) -> str:
    """Asks the server at `url` for its models, with the key in CDVFT_API_KEY where it wants one; else there is only the
    address to tell, and how to make a key in its `database`."""
    make_key = f"cdvft keys create --tenant default{_option(database)}"
    keyless = NO_KEY if is_loopback(urlsplit(url).hostname or "") else ANYBODY
    url = url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
    try:
        return _announcement(url, embedded, "", f"{keyless} ({make_key})")
    except AuthenticationError:
        pass
    except CDVFTError:
        return f"ready on {url}"
    try:
        return _announcement(url, embedded, os.environ.get("CDVFT_API_KEY", ""), NEEDED)
    except CDVFTError:
        return f"ready on {url}\n{NEEDED}: {make_key}"


def _option(database: str) -> str:
    """What a command must be told to use the same store; a password is not shown."""
    if database == default_database():
        return ""
    return f" --database {shlex.quote(make_url(database).render_as_string(hide_password=True))}"


def _announcement(url: str, embedded: bool, key: str, about_keys: str) -> str:
    """Raises CDVFTError."""
    with Client(url, api_key=key) as client:
        base = next(model.id for model in client.models() if model.parent is None)
        adapters = sorted(islice(client.adapters(), MOST), key=lambda adapter: adapter.description != DEMO)
        generates = any(adapter.task == "lm" for adapter in adapters) or _generates(client, base)
    count = f"{MOST:,} or more" if len(adapters) == MOST else str(len(adapters))
    lines = [f"{base} is ready on {url} with {count} adapter{'' if len(adapters) == 1 else 's'}", about_keys]
    writer = next((adapter for adapter in adapters if adapter.task == "lm"), None)
    scorers = [adapter for adapter in adapters if adapter.task != "lm"]
    labeller = next((adapter for adapter in scorers if adapter.task == "classification"), next(iter(scorers), None))
    if generates:
        body = {
            "model": writer.name if writer else base,
            "prompt": _prompt(writer, embedded),
            "max_tokens": 60,
            "temperature": 0,
        }
        lines += ["generate:", _curl(url, "completions", body, key)]
    if labeller is not None:
        lines += ["classify:", _curl(url, "classify", {"model": labeller.name, "input": _text(embedded)}, key)]
    if not adapters:
        lines += ["upload an adapter:", f"  cdvft push DIR --server {url}"]
    return "\n".join(lines)


def _generates(client: Client, base: str) -> bool:
    try:
        client.complete(base, PROMPT, max_tokens=1)
    except CDVFTError:
        return False
    return True


def _prompt(writer: Adapter | None, embedded: bool) -> str:
    """For the embedded base the first two words of something that the adapter might write."""
    if not embedded:
        return PROMPT
    style = WRITERS.get(writer.name) if writer else None
    grammar = language().restricted(style.lists) if style else language()
    return " ".join(grammar.generate(style.rule if style else "story", random.Random(1)).split()[:2])


def _text(embedded: bool) -> str:
    return language().generate(f"{TOPICS[0]}_positive", random.Random(1)) if embedded else TEXT


def _curl(url: str, route: str, body: object, key: str) -> str:
    """With the variable, never the key itself."""
    data = shlex.quote(json.dumps(body, ensure_ascii=False))
    needed = ' -H "authorization: Bearer $CDVFT_API_KEY"' if key else ""
    return f"  curl {url}/v1/{route} -H 'content-type: application/json'{needed} -d {data}"

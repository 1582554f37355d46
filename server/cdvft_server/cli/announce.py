"""What a server says when it is ready: its address, and calls that work as pasted."""

import json
import random
import shlex
from itertools import islice

from cdvft_client import Adapter, CDVFTError, Client

from cdvft_server.demo.language import TOPICS, WRITERS, language

__all__ = ["announcement"]

PROMPT, TEXT = "Once upon a time", "This is the best day of the year."
MOST = 1000  # adapters to look at: they are asked for in pages
DEMO = "Demo"  # the description of the adapters that come with the embedded base


def announcement(url: str, *, embedded: bool) -> str:
    """Asks the server at `url` for its models; where it wants a key there is only the address to tell."""
    url = url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
    try:
        with Client(url) as client:
            base = next(model.id for model in client.models() if model.parent is None)
            adapters = sorted(islice(client.adapters(), MOST), key=lambda adapter: adapter.description != DEMO)
    except CDVFTError:
        return f"ready on {url}"
    count = f"{MOST:,} or more" if len(adapters) == MOST else str(len(adapters))
    lines = [f"{base} is ready on {url} with {count} adapter{'' if len(adapters) == 1 else 's'}"]
    writer = next((adapter for adapter in adapters if adapter.task == "lm"), None)
    scorers = [adapter for adapter in adapters if adapter.task != "lm"]
    labeller = next((adapter for adapter in scorers if adapter.task == "classification"), next(iter(scorers), None))
    if writer is not None or _generates(url, base):
        body = {
            "model": writer.name if writer else base,
            "prompt": _prompt(writer, embedded),
            "max_tokens": 60,
            "temperature": 0,
        }
        lines += ["generate:", _curl(url, "completions", body)]
    if labeller is not None:
        lines += ["classify:", _curl(url, "classify", {"model": labeller.name, "input": _text(embedded)})]
    if not adapters:
        lines += ["upload an adapter:", f"  cdvft push DIR --server {url}"]
    return "\n".join(lines)


def _generates(url: str, base: str) -> bool:
    with Client(url) as client:
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


def _curl(url: str, route: str, body: object) -> str:
    data = shlex.quote(json.dumps(body, ensure_ascii=False))
    return f"  curl {url}/v1/{route} -H 'content-type: application/json' -d {data}"

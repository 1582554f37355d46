"""Uploads, new versions, alias moves and deletes while 32 streams decode: no answer comes from wrong weights."""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
from cdvft.backbone import Backbone, load_backbone
from cdvft.formatting import encode_prompt
from cdvft_client import Client, ConflictError, NotFoundError

from tests.e2e import inputs, serving
from tests.e2e.fleet import MAX_TOKENS, Known, known_adapters
from tests.e2e.reference import Answer, Comparison

pytestmark = pytest.mark.trial

NAMES = [f"name-{k}" for k in range(5)]
STREAMS = 32
REQUESTS = 20  # of each stream
PROMPTS = ["Once upon a time", "The dog saw a big red ball and", "Lily said", "It was a cold day. Tom"]


def churn(client: Client, fleet: list[Known], stop: Event) -> dict[str, int]:
    """Change the store at random until `stop`; counts what was done."""
    rng, done = random.Random(3), {"upload": 0, "alias": 0, "delete": 0, "refused": 0}
    while not stop.is_set():
        name, known = rng.choice(NAMES), rng.choice(fleet)
        action = rng.choice(["upload", "upload", "alias", "delete"])
        try:
            if action == "upload":
                client.upload(name=name, config=known.files.config, weights=known.files.weights, alias="live")
            elif action == "alias":
                client.set_alias(name, "live", rng.choice([v.version for v in client.versions(name)]))
            else:
                versions = [v.version for v in client.versions(name)]
                client.delete(name, version=rng.choice([*versions, None]))
            done[action] += 1
        except (NotFoundError, ConflictError):
            done["refused"] += 1
    return done


def stream(client: Client, seed: int) -> list[tuple[str, str, str]]:
    """(digest that the server named, prompt, text) of each answer; a name that is gone answers 404 and is left out."""
    rng, answers = random.Random(seed), []
    for _ in range(REQUESTS):
        model = rng.choice(NAMES) + rng.choice(["", "@live", "@1", "@2"])
        prompt = rng.choice(PROMPTS)
        try:
            answer = client.complete(model, prompt, max_tokens=MAX_TOKENS, temperature=0)
        except NotFoundError:
            continue
        assert answer.adapter.digest is not None
        answers.append((answer.adapter.digest, prompt, answer.choices[0].text))
    return answers


def test_every_answer_is_its_own_digests(tmp_path: Path) -> None:
    base = inputs.model("stories260k")
    backbone: Backbone = load_backbone(str(base))
    fleet = known_adapters(backbone, 12, PROMPTS, tmp_path / "adapters")
    by_digest = {known.digest: known for known in fleet}
    stop = Event()
    with (
        serving.running(tmp_path / "store.db", "--base", str(base)) as server,
        Client(server.url) as client,
        ThreadPoolExecutor(STREAMS + 1) as pool,
    ):
        for name, known in zip(NAMES, fleet, strict=False):
            client.upload(name=name, config=known.files.config, weights=known.files.weights, alias="live")
        changes = pool.submit(churn, client, fleet, stop)
        streams = [pool.submit(stream, client, seed) for seed in range(STREAMS)]
        answers = [answer for own in streams for answer in own.result()]
        stop.set()
        print(changes.result())
        assert min(changes.result()[kind] for kind in ("upload", "alias", "delete")) > 0
    compared = Comparison()
    for digest, prompt, text in answers:
        known, ids = by_digest[digest], encode_prompt(backbone.tokenizer, prompt)
        before = backbone.tokenizer.decode(ids, skip_special_tokens=True)

        def decode(tokens: list[int], ids: list[int] = ids, before: str = before) -> str:
            return str(backbone.tokenizer.decode([*ids, *tokens], skip_special_tokens=True)[len(before) :])

        compared.add(f"{digest[:20]} {prompt!r}", Answer(text, known.expected[prompt], ids, known.model, decode))
    assert len({digest for digest, _, _ in answers}) >= len(fleet) * 3 // 4  # the others came and went unasked
    assert len(answers) > STREAMS * REQUESTS // 4
    print(f"{len(answers)} answers of {STREAMS * REQUESTS} asked (the others named what was just deleted)")
    compared.check()

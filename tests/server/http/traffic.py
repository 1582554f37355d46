"""Clients that change names and ask for them all the while, know what was acknowledged, and check every answer by it.

Each name is changed by one client alone: at any time it is what it was before the change under way, or after it.
"""

import io
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from random import Random
from threading import Condition, Event, Thread

import httpx

from tests.server.http.changes import Name, random_change
from tests.server.http.contents import Content, asking
from tests.server.http.forked import Server
from tests.server.http.harness import WAIT

WRITERS, READERS, NAMES = 3, 2, 2  # names of each writer
ASKED = 8  # numbers of a name's versions that a check asks for, the highest

Asker = tuple[Server, httpx.Client]


class NobodyLives(Exception):
    """All servers were killed."""


@dataclass
class Record:
    """What is known of a name. `coming`: what it is after the change under way. `stamp` is odd during a change, and
    another after it."""

    name: str
    now: Name = field(default_factory=Name)
    coming: Name | None = None
    stamp: int = 0

    def begin(self, coming: Name) -> None:
        self.stamp += 1
        self.coming = coming

    def end(self, made: bool) -> None:
        assert self.coming is not None
        self.now, self.coming = self.coming if made else self.now, None
        self.stamp += 1

    def settle(self, client: httpx.Client) -> bool:
        """See whether the change that was not answered was made: all of it, or nothing."""
        assert self.coming is not None
        seen = look(client, self.name)
        assert seen.same_as(self.now) or seen.same_as(self.coming), (self.name, seen, self.now, self.coming)
        made = not seen.same_as(self.now)
        self.end(made)
        return made


@dataclass
class Figures:
    """What a test prints."""

    acknowledged: Counter[str] = field(default_factory=Counter)
    unanswered: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    checked: int = 0

    def __str__(self) -> str:
        return (
            f"{self.acknowledged.total()} changes acknowledged {dict(self.acknowledged)}; "
            f"{self.unanswered.total()} not answered {dict(self.unanswered)}; "
            f"{self.answers.total()} answers {dict(self.answers)}; {self.checked} times a version's files compared"
        )


class Traffic:
    """`servers` share a database; one that is killed goes on being named here until another takes its place."""

    def __init__(self, contents: Sequence[Content], seed: int) -> None:
        self.contents = {own.digest: own for own in contents}
        self.records = [Record(f"name-{k}") for k in range(WRITERS * NAMES)]
        self.servers: list[Server] = []
        self.figures = Figures()
        self.settled = Event()  # nothing that the killed server asked for is under way in the database any more
        self._seeds, self._stopped, self._changed = Random(seed), Event(), Condition()
        self._errors: list[BaseException] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Raises what a client met that must not be."""
        self._stopped.clear()
        self.settled.clear()
        threads = [self._thread(self._write, self.records[k::WRITERS]) for k in range(WRITERS)]
        threads += [self._thread(self._read, self.records) for _ in range(READERS)]
        try:
            yield
        finally:
            self._stopped.set()
            self.settled.set()
            for thread in threads:
                thread.join()
        self._raise()

    def wait_for(self, changes: int, kind: str | None = None) -> None:
        """Until so many more were acknowledged."""

        def count() -> int:
            return self.figures.acknowledged[kind] if kind else self.figures.acknowledged.total()

        with self._changed:
            enough = count() + changes
            assert self._changed.wait_for(lambda: count() >= enough or self._errors, WAIT), "nothing is acknowledged"
        self._raise()

    def check(self) -> None:
        """On every server: what each name is, its versions' files, and what each selector answers."""
        with ExitStack() as stack:
            clients = [client for _, client in askers(self.servers, stack)]
            for record in self.records:
                if record.coming is not None:
                    self._settle(clients[0], record)
                for client in clients:
                    self._check(client, record)

    def _check(self, client: httpx.Client, record: Record) -> None:
        name, now = record.name, record.now
        assert look(client, name).same_as(now), (name, now)
        numbers = range(1, now.highest + 2)[-ASKED:]
        for selector in ("", *(f"@{number}" for number in numbers), *(f"@{alias}" for alias in now.aliases)):
            self._verify(self._ask(client, name + selector), now.digest(selector))
        for number, digest in now.versions.items():
            self.figures.checked += 1
            answer = client.get(f"/v1/adapters/{name}/download", params={"version": number})
            with zipfile.ZipFile(io.BytesIO(answer.raise_for_status().content)) as archive:
                assert {own: archive.read(own) for own in archive.namelist()} == self.contents[digest].files.named()

    def _thread(self, work: Callable[[Random, list[Asker], Record], None], records: Sequence[Record]) -> Thread:
        thread = Thread(target=self._run, args=(work, records, Random(self._seeds.random())))
        thread.start()
        return thread

    def _run(self, work: Callable[[Random, list[Asker], Record], None], records: Sequence[Record], rng: Random) -> None:
        try:
            with ExitStack() as stack:
                clients = askers(self.servers, stack)
                while not self._stopped.is_set():
                    try:
                        work(rng, clients, rng.choice(records))
                    except httpx.TransportError as error:
                        if any(own.alive and str(error.request.url).startswith(own.url) for own, _ in clients):
                            raise
        except NobodyLives:
            return
        except BaseException as error:
            with self._changed:
                self._errors.append(error)
                self._changed.notify_all()

    def _write(self, rng: Random, clients: list[Asker], record: Record) -> None:
        if record.coming is not None:
            assert self.settled.wait(WAIT)
            self._settle(living(rng, clients), record)
            return
        change = random_change(rng, record.now, list(self.contents.values()))
        client = living(rng, clients)
        record.begin(change.after(record.now))
        answer = change.send(client, record.name)
        assert answer.status_code == change.status(record.now), (change, record, answer.text)
        record.end(made=True)
        with self._changed:
            self.figures.acknowledged["refused" if answer.status_code == 409 else change.kind] += 1
            self._changed.notify_all()
        if rng.random() < 0.5:
            return
        selector = random_selector(rng, record.now)
        answer = self._ask(living(rng, clients), record.name + selector)  # what was acknowledged holds everywhere
        self._verify(answer, record.now.digest(selector))

    def _read(self, rng: Random, clients: list[Asker], record: Record) -> None:
        stamp, now = record.stamp, record.now
        selector = random_selector(rng, now)
        answer = self._ask(living(rng, clients), record.name + selector)
        if stamp % 2 == 0 and record.stamp == stamp:  # nobody changed it
            self._verify(answer, now.digest(selector))
        else:
            self._verify(answer, answer.headers["x-adapter-digest"] if answer.status_code == 200 else None)

    def _ask(self, client: httpx.Client, model: str) -> httpx.Response:
        return client.post("/v1/completions", json=asking(model))

    def _verify(self, answer: httpx.Response, digest: str | None) -> None:
        """It is this adapter's own answer; None: a 404."""
        with self._changed:
            self.figures.answers["404" if digest is None else "adapter's own"] += 1
        if digest is None:
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found"), answer.text
            return
        assert answer.status_code == 200, answer.text
        assert "x-adapter-stale" not in answer.headers
        assert answer.headers["x-adapter-digest"] == digest
        assert answer.json()["choices"][0]["text"] == self.contents[digest].text

    def _settle(self, client: httpx.Client, record: Record) -> None:
        made = record.settle(client)
        with self._changed:
            self.figures.unanswered["made" if made else "not made"] += 1

    def _raise(self) -> None:
        if self._errors:
            raise self._errors[0]


def asker(server: Server) -> httpx.Client:
    """Each request has a connection of its own: none is one that the server just closed."""
    return httpx.Client(base_url=server.url, timeout=WAIT, headers={"connection": "close"})


def askers(servers: Sequence[Server], stack: ExitStack) -> list[Asker]:
    return [(server, stack.enter_context(asker(server))) for server in servers]


def living(rng: Random, clients: Sequence[Asker]) -> httpx.Client:
    """A client of one of the servers that live. Raises NobodyLives."""
    alive = [client for server, client in clients if server.alive]
    if not alive:
        raise NobodyLives
    return rng.choice(alive)


def look(client: httpx.Client, name: str) -> Name:
    """The name as lists show it; its `highest` cannot be seen."""
    answer = client.get(f"/v1/adapters/{name}/versions", params={"limit": 100})
    if answer.status_code == 404:
        return Name()
    rows = answer.raise_for_status().json()["data"]
    return Name({row["version"]: row["digest"] for row in rows}, rows[0]["aliases"])


def random_selector(rng: Random, name: Name) -> str:
    """None, an alias, or a version's number; now and then of a version that was deleted, or that is not there yet."""
    numbers = [rng.randint(1, name.highest + 1)]
    return rng.choice(["", *(f"@{own}" for own in (*name.aliases, *name.versions, *numbers))])

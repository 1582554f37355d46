"""What the calls answer: frozen, and each with the server's own JSON in `raw`."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AdapterUsed:
    """Which weights answered, as the response says.

    `name` is the adapter's, or the base's; `version` is None for the base; `digest` is `sha256:...`;
    `mode` is `base`, `fft` (unmerged) or `merged`. Where one call names several adapters all four are None:
    each row then has its own.
    """

    name: str | None
    version: int | None
    digest: str | None
    mode: str | None
    request_id: str | None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens counted."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True)
class Choice:
    """One sequence, or in a stream its next piece. `finish_reason`: `stop`, `length`, `cancelled`, or None."""

    index: int
    text: str
    finish_reason: str | None


@dataclass(frozen=True, slots=True)
class Completion:
    """Answer of `complete` and `chat`; choice `prompt * n + i` is the i-th of that prompt."""

    id: str
    model: str
    created: int
    choices: tuple[Choice, ...]
    usage: Usage | None
    adapter: AdapterUsed
    raw: dict[str, Any] = field(repr=False, compare=False)

    @property
    def text(self) -> str:
        """The first choice's text."""
        return self.choices[0].text if self.choices else ""


@dataclass(frozen=True, slots=True)
class Chunk(Completion):
    """One event of a stream. The last one has no choices but `usage`, if `include_usage` asked for it."""


@dataclass(frozen=True, slots=True)
class LabelScore:
    label: str
    score: float


@dataclass(frozen=True, slots=True)
class ClassifiedRow:
    """One input's answer: the best label and its score; for a regression `label` is None, `scores` empty."""

    index: int
    label: str | None
    score: float
    scores: tuple[LabelScore, ...]
    adapter: AdapterUsed


@dataclass(frozen=True, slots=True)
class Classification:
    """Answer of `classify`, one row for each input in the inputs' order; `model` is None if it was a list."""

    model: str | None
    data: tuple[ClassifiedRow, ...]
    usage: Usage | None
    adapter: AdapterUsed
    raw: dict[str, Any] = field(repr=False, compare=False)

    @property
    def labels(self) -> tuple[str | None, ...]:
        return tuple(row.label for row in self.data)

    @property
    def scores(self) -> tuple[float, ...]:
        return tuple(row.score for row in self.data)

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[ClassifiedRow]:
        return iter(self.data)

    def __getitem__(self, index: int) -> ClassifiedRow:
        return self.data[index]


@dataclass(frozen=True, slots=True)
class Model:
    """A line of `/v1/models`: the base (`parent` None), or an adapter (`parent`: base, `root`: digest)."""

    id: str
    created: int | None
    owned_by: str | None
    parent: str | None
    root: str | None
    raw: dict[str, Any] = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Adapter:
    """One version of an adapter. Its `id` is its name.

    `num_parameters` is without the head; `bytes` is the size of the files stored; `created_at` and
    `last_used` are Unix seconds. `created` is for `upload`: True if this made a new version, False if the
    name had that content already. What an answer does not tell is None.
    """

    id: str
    name: str
    version: int
    digest: str
    method: str
    base_model: str
    base_verified: bool
    task: str
    labels: tuple[str, ...] | None
    num_parameters: int
    head_parameters: int
    bytes: int
    sites: tuple[str, ...]
    aliases: dict[str, int] = field(hash=False)
    public: bool
    created_at: float
    description: str | None
    self_test_error: float | None
    ignored_files: tuple[str, ...] | None
    residency: str | None
    hits: int | None
    last_used: float | None
    pinned: bool | None
    created: bool | None
    request_id: str | None
    raw: dict[str, Any] = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Deleted:
    """Answer of `delete`; `bytes_freed` is 0 while another version or name shares the content."""

    id: str
    deleted: bool
    bytes_freed: int
    request_id: str | None
    raw: dict[str, Any] = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who owns adapters and keys. Limits that are None are the server's; `adapters` and `bytes` are what it has."""

    id: str
    max_adapters: int | None
    max_bytes: int | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    max_concurrent: int | None
    weight: float
    adapters: int
    bytes: int
    created_at: float
    raw: dict[str, Any] = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Key:
    """An API key. `secret` is the key itself, told by `create_key` and `rotate_key` only; `prefix` is how it begins.

    Times are Unix seconds. `replaces` is for `rotate_key`: the old key, with the time when it ends.
    """

    id: str
    tenant: str
    prefix: str
    scopes: tuple[str, ...]
    created_at: float
    expires_at: float | None
    revoked_at: float | None
    secret: str | None = field(repr=False)
    replaces: "Key | None"
    raw: dict[str, Any] = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class UsageEntry:
    """What one group used. `start` and `end` are unix seconds; what the group's rows may differ in is None, and so is
    the base's version. `seconds` are the engine's."""

    id: str
    start: int | None
    end: int | None
    tenant: str | None
    adapter: str | None
    version: int | None
    digest: str | None
    requests: int
    failed: int
    cancelled: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    raw: dict[str, Any] = field(repr=False, compare=False)

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    data: tuple[T, ...]
    has_more: bool
    last_id: str | None

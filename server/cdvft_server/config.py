"""What a server can be told, from options and from `CDVFT_` variables: the only place that reads the environment.

The command line's `serve` options are made from these fields; so are the variables: `max_labels` is `--max-labels` and
`CDVFT_MAX_LABELS`.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    ByteSize,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from cdvft_server.exceptions import InvalidName
from cdvft_server.naming import check_name

__all__ = ["OTHER_VARIABLES", "ServeConfig", "default_database", "unused_variables"]

PREFIX = "CDVFT_"
OPTION_VARIABLES = tuple(
    PREFIX + name
    for name in (
        "ADAPTER ALIAS ALPHA BATCH_SIZE CASE CHAT CSV DATA DESCRIPTION DISTINCT END EPOCHS EVAL GROUP_BY HEAD "
        "JSON LABELS LR LR_CIRCULANT LR_DIAGONAL LR_HEAD MAX_LENGTH MAX_TOKENS METHOD MIXED_PRECISION NAME NUM_FACTORS "
        "N_FREQUENCY OUT PAIRS PARTITION_SIZE PATIENCE PLOT POPULARITY PUBLIC PUSH RANK RAW_SCORES REQUESTS RESUME "
        "RUNS SEED SHAPE START STOP TARGETS TEMPERATURE TEMPLATE TENANT TEXT TOP_K TOP_P TRUNCATE WEIGHT_DECAY YES "
        "EXPIRES MAX_ADAPTERS MAX_BYTES MAX_CONCURRENT OVERLAP REQUESTS_PER_MINUTE SCOPES TOKENS_PER_MINUTE "
        "WEIGHT WITH_ADAPTERS"
    ).split()
)
"""Variables of the other commands' options."""

OTHER_VARIABLES = (*OPTION_VARIABLES, *(PREFIX + name for name in ("SERVER", "API_KEY", "TRIAL_INPUTS")))
"""These, and those of the client and of the tests."""

Bytes = Annotated[ByteSize, Field(gt=0)]


def default_database() -> str:
    """Where the store is unless it is said."""
    home = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return f"sqlite:///{Path(home).absolute() / 'cdvft' / 'store.db'}"


def unused_variables() -> list[str]:
    """Variables that are set for other commands, where a user may have meant `serve`."""
    return sorted(set(OPTION_VARIABLES) & set(os.environ))


class ServeConfig(BaseSettings):
    """Every field is an option and a variable; what is not a field is refused."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, validate_default=True)

    base: str | None = Field(None, description="Model folder or Hub id; the embedded cdvft-tiny if left out")
    served_name: str | None = Field(None, description="What requests call the base; else the last part of its name")
    host: str = Field("127.0.0.1", description="Address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on")
    database: str = Field(
        default_factory=default_database,
        description="sqlite:////abs/path/store.db or postgresql://user@host:port/db; else store.db in "
        "$XDG_DATA_HOME/cdvft (~/.local/share/cdvft)",
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto is float32 on the CPU and the checkpoint's own on CUDA"
    )
    adapters: Annotated[tuple[Path, ...], NoDecode] = Field(
        (), description="Adapter folder, or a folder of them, to upload at start (a variable has several with ':')"
    )
    adapters_update: bool = Field(False, description="Upload a new version where --adapters differs from the store")
    mode: Literal["fft", "merged", "auto"] = Field("auto", description="How adapters run where a request does not say")
    adapter_memory: Bytes | None = Field(
        None, description="Device bytes for adapters, e.g. 2GiB; else a quarter of what is free at start"
    )
    merged_memory: Annotated[ByteSize, Field(ge=0)] | None = Field(
        None, description="Device bytes for merged weights; 0 merges nothing; else half of --adapter-memory"
    )
    host_memory: Annotated[ByteSize, Field(ge=0)] | None = Field(
        None,
        description="Bytes for adapters that left the device; 0 keeps none; else an eighth of what is free at start",
    )
    preload: NonNegativeInt | Literal["all"] = Field(
        0, description="Most recently used adapters to bring onto the device before it is ready: a number, or all"
    )
    allow_unauthenticated: bool = Field(False, description="Listen on another host than loopback without any key")
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="More names that a Host header may have without keys (a variable has several with ',')"
    )
    max_batch_tokens: PositiveInt = Field(2048, description="Tokens of one forward pass")
    scheduling: Literal["fair", "fifo"] = Field(
        "fair", description="Whose requests go first: fair between tenants, or fifo: in order of arrival"
    )
    kernel: Literal["auto", "native", "triton", "torch"] = Field(
        "auto",
        description="Fast paths of CDVFT and attention: C on the CPU, Triton on CUDA; torch where they cannot run",
    )
    cuda_graphs: Literal["auto", "on", "off"] = Field(
        "auto", description="Decode steps from CUDA graphs; auto: on CUDA where Triton is installed"
    )
    threads: PositiveInt | None = Field(None, description="Threads of a forward pass; else one for each core")
    context_length: PositiveInt | None = Field(None, description="Prompt and answer together; else the base's longest")
    kv_tokens: PositiveInt | None = Field(None, description="Tokens of the KV arena that running requests share")
    log_format: Literal["text", "json"] = Field("text", description="Log lines for people, or JSON for programs")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="From where on lines are logged; debug shows messages that may quote a request"
    )
    drain_seconds: NonNegativeFloat = Field(30.0, description="How long running requests may go on at shutdown")
    delete_wait_seconds: NonNegativeFloat = Field(
        30.0, le=30.0, description="How long a delete waits for requests in flight"
    )
    stale_seconds: NonNegativeFloat = Field(
        60.0, le=60.0, description="How long a name's last resolution is used while the database is away"
    )
    pool_wait_seconds: NonNegativeFloat = Field(
        5.0, description="How long a request waits for room in a full adapter memory"
    )
    request_wait_seconds: PositiveFloat = Field(
        30.0, description="How long a client may pause while it sends a request"
    )
    response_wait_seconds: PositiveFloat = Field(
        60.0, description="How long a client may take to read on while more of its answer waits"
    )
    max_connections: PositiveInt = Field(
        2048, description="Most open connections; fewer where the process may not open three files for each"
    )

    max_weights_bytes: Bytes = Field(ByteSize(256 << 20), description="Largest weights file")
    max_expanded_bytes: Bytes | None = Field(
        None, description="Largest expansion of an archive; else twice the weights'"
    )
    max_archive_members: PositiveInt = Field(64, description="Most members of an archive")
    max_header_bytes: Bytes = Field(ByteSize(1 << 20), description="Longest safetensors header; also longest config")
    max_json_bytes: Bytes = Field(ByteSize(8 << 20), description="Largest JSON body")
    max_json_nodes: PositiveInt = Field(131_072, description="Most lists, objects and keys in a JSON body")
    max_messages: PositiveInt = Field(4096, description="Most messages of a chat")
    max_content_parts: PositiveInt = Field(4096, description="Most text parts in the messages of a chat")
    max_stop_token_ids: PositiveInt = Field(1024, description="Most stop_token_ids")
    max_template_bytes: Bytes = Field(ByteSize(1 << 20), description="Longest text that a chat template may write")
    max_classify_rows: PositiveInt = Field(1024, description="Most inputs of one classify call")
    max_prompts: PositiveInt = Field(128, description="Most prompts of one completions call")
    max_sequences: PositiveInt = Field(128, description="Most prompts x n of one call")
    max_labels: PositiveInt = Field(512, description="Most labels of an adapter")
    max_description: PositiveInt = Field(1000, description="Longest description, in characters")
    max_queue: PositiveInt = Field(
        1024, description="Most requests that wait for the engine, and in each line before it"
    )
    max_uploads: PositiveInt = Field(64, description="Most uploads at a time, those that wait to be checked included")

    @field_validator("adapters", mode="before")
    @classmethod
    def _split_paths(cls, value: Any) -> Any:
        return tuple(filter(None, value.split(os.pathsep))) if isinstance(value, str) else value

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _split_hosts(cls, value: Any) -> Any:
        return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value

    @field_validator("preload", mode="before")
    @classmethod
    def _check_preload(cls, value: Any) -> Any:
        if value != "all" and re.fullmatch(r"[0-9]{1,9}", str(value)) is None:
            raise ValueError(f"{value!r} is neither a number of adapters nor all")
        return value if value == "all" else int(value)

    @field_validator("device")
    @classmethod
    def _check_device(cls, value: str) -> str:
        if re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,4})?", value) is None:
            raise ValueError(f"{value!r} is not known; use auto, cpu, cuda or cuda:N")
        return value

    @field_validator("served_name")
    @classmethod
    def _check_served_name(cls, value: str | None) -> str | None:
        try:
            return value if value is None else check_name("adapter", value)
        except InvalidName as error:
            raise ValueError(f"the served name breaks the rule for names: {error}") from None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_variables(cls, values: Any) -> Any:
        known = {PREFIX + name.upper() for name in cls.model_fields} | set(OTHER_VARIABLES)
        unknown = sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)
        if unknown:
            raise ValueError(f"unknown variables {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        return values

    @property
    def expanded_bytes(self) -> int:
        """The most that an archive may expand to."""
        return self.max_expanded_bytes or 2 * self.max_weights_bytes

    @property
    def upload_bytes(self) -> int:
        """The most that the body of an upload may have: either form, and 1 MiB for its fields and boundaries."""
        return max(self.max_weights_bytes + self.max_header_bytes, self.expanded_bytes) + (1 << 20)

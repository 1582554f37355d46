"""What a server can be told, and what it refuses to be told."""

import os
import re
from pathlib import Path

import pytest
from cdvft_server.config import OTHER_VARIABLES, ServeConfig, unused_variables
from cdvft_server.store.urls import database_url
from pydantic import ValidationError


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("CDVFT_")]:
        monkeypatch.delenv(name)


def test_the_limits_are_those_of_the_contract() -> None:
    config = ServeConfig()
    assert (config.max_weights_bytes, config.expanded_bytes, config.max_archive_members) == (1 << 28, 1 << 29, 64)
    assert (config.max_header_bytes, config.max_json_bytes, config.max_classify_rows) == (1 << 20, 8 << 20, 1024)
    assert (config.max_prompts, config.max_sequences, config.max_labels) == (128, 128, 512)
    assert (config.max_description, config.max_queue, config.delete_wait_seconds) == (1000, 1024, 30)
    assert (config.max_json_nodes, config.max_messages, config.max_content_parts) == (131_072, 4096, 4096)
    assert (config.max_stop_token_ids, config.request_wait_seconds, config.max_connections) == (1024, 30, 2048)
    assert config.max_template_bytes == 1 << 20
    assert (config.host, config.port, config.base, config.allow_unauthenticated) == ("127.0.0.1", 8000, None, False)


def test_the_database_is_in_the_users_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert ServeConfig().database == f"sqlite:///{tmp_path}/cdvft/store.db"


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("CDVFT_PORT", "9000", "port", 9000),
        ("CDVFT_MAX_WEIGHTS_BYTES", "1MiB", "max_weights_bytes", 1 << 20),
        ("CDVFT_ADAPTER_MEMORY", "2GiB", "adapter_memory", 2 << 30),
        ("CDVFT_HOST_MEMORY", "0", "host_memory", 0),
        ("CDVFT_PRELOAD", "12", "preload", 12),
        ("CDVFT_PRELOAD", "all", "preload", "all"),
        ("CDVFT_ADAPTERS", "/a:/b", "adapters", (Path("/a"), Path("/b"))),
        ("CDVFT_ALLOWED_HOSTS", "a.example, b", "allowed_hosts", ("a.example", "b")),
        ("CDVFT_ALLOW_UNAUTHENTICATED", "true", "allow_unauthenticated", True),
        ("CDVFT_DTYPE", "bfloat16", "dtype", "bfloat16"),
    ],
)
def test_variables(monkeypatch: pytest.MonkeyPatch, name: str, value: str, field: str, expected: object) -> None:
    monkeypatch.setenv(name, value)
    assert getattr(ServeConfig(), field) == expected


def test_an_option_beats_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDVFT_PORT", "9000")
    assert ServeConfig(port=9001).port == 9001


def test_an_unknown_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDVFT_MAX_LABEL", "3")
    with pytest.raises(ValidationError, match="CDVFT_MAX_LABEL"):
        ServeConfig()


def test_variables_of_other_programs_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OTHER_VARIABLES:
        monkeypatch.setenv(name, "9")
    assert ServeConfig()


@pytest.mark.parametrize(
    "options",
    [
        {"prot": 1},
        {"port": 70000},
        {"device": "gpu"},
        {"dtype": "int8"},
        {"mode": "lora"},
        {"max_queue": 0},
        {"max_json_bytes": 0},
        {"delete_wait_seconds": 31},
        {"drain_seconds": -1},
        {"adapter_memory": "much"},
        {"served_name": "a/b"},
    ],
)
def test_what_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(options))):
        ServeConfig(**options)


def test_a_database_that_is_advertised_is_served() -> None:
    told = re.findall(r"\w+:/+[^; ]+", ServeConfig.model_fields["database"].description or "")
    found = [database_url(url.replace("port", "5432")) for url in told]
    assert [(url.get_backend_name(), url.database) for url in found] == [
        ("sqlite", "/abs/path/store.db"),
        ("postgresql", "db"),
    ]


def test_variables_of_other_commands_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CDVFT_NAME", "CDVFT_MAX_LENGTH", "CDVFT_SERVER", "CDVFT_PORT"):
        monkeypatch.setenv(name, "9")
    assert unused_variables() == ["CDVFT_MAX_LENGTH", "CDVFT_NAME"]


def test_every_field_is_described() -> None:
    assert [name for name, field in ServeConfig.model_fields.items() if not field.description] == []

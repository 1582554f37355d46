"""`cdvft tenants` and `cdvft keys` on a database, without a server."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cdvft_server.cli import main
from cdvft_server.store import Store
from click.testing import CliRunner, Result

from tests.server.store_maker import put, url_of

Run = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """What a command prints as JSON, or with `code` its whole result."""

    def invoke(*args: str, code: int = 0) -> Any:
        result: Result = CliRunner().invoke(main, [*args, "--database", url_of(tmp_path)])
        assert result.exit_code == code, result.output
        return result if code else json.loads(result.stdout)

    return invoke


def test_tenants_are_managed(run: Run, tmp_path: Path) -> None:
    made = run("tenants", "create", "acme", "--max-adapters", "3", "--tokens-per-minute", "1000", "--weight", "2")
    assert (made["id"], made["max_adapters"], made["tokens_per_minute"], made["weight"]) == ("acme", 3, 1000, 2.0)
    changed = run("tenants", "set", "acme", "--max-adapters", "none", "--max-concurrent", "4")
    assert (changed["max_adapters"], changed["tokens_per_minute"], changed["max_concurrent"]) == (None, 1000, 4)
    for size, bytes_ in (("10GiB", 10 << 30), ("1.5kB", 1500), ("0", 0), ("none", None)):
        assert run("tenants", "set", "acme", "--max-bytes", size)["max_bytes"] == bytes_
    assert [row["id"] for row in run("tenants", "list")] == ["acme", "default"]
    store = Store.open(url_of(tmp_path))
    put(store, "poet", "one", "acme")
    store.close()
    assert "'acme' has 1 adapter: delete them first, or with the tenant (--with-adapters" in (
        run("tenants", "rm", "acme", code=1).output
    )
    assert run("tenants", "rm", "acme", "--with-adapters")["adapters_deleted"] == 1
    for args, code, message in (
        (("create", "default"), 1, "there is a tenant 'default' already"),
        (("create", "a b"), 1, "tenant name 'a b' is not allowed"),
        (("create", "a", "--max-adapters", "-1"), 2, "'-1' is neither a number nor none"),
        (("create", "a", "--max-bytes", "-1"), 2, "'-1' is neither a number of bytes, such as 10GiB, nor none"),
        (("create", "a", "--max-bytes", "9e999GiB"), 2, "is neither a number of bytes"),
        (("set", "default", "--max-bytes", "9999EiB"), 2, "--max-bytes: Input should be less than"),
        (("set", b"\xff".decode(errors="surrogateescape")), 1, "there is no tenant"),
        (("set", "default", "--requests-per-minute", "0"), 2, "--requests-per-minute: Input should be greater than"),
        (("set", "default", "--weight", "none"), 2, "--weight"),
        (("set", "acme"), 1, "there is no tenant 'acme'"),
        (("rm", "default"), 1, "always there"),
    ):
        assert message in run("tenants", *args, code=code).output, args


def test_keys_are_managed_and_shown_once(run: Run) -> None:
    made = run("keys", "create", "--tenant", "default", "--scopes", "infer, admin", "--expires", "90d")
    assert (made["tenant"], made["scopes"]) == ("default", ["infer", "admin"])
    assert made["expires_at"] == made["created_at"] + 90 * 86400
    secret = made.pop("key")
    assert secret.startswith(made["prefix"])
    listed = run("keys", "list")
    assert listed == [made]
    rotated = run("keys", "rotate", made["id"], "--overlap", "60")
    assert rotated["replaces"]["id"] == made["id"]
    assert rotated["replaces"]["expires_at"] < made["expires_at"]
    assert rotated["key"] != secret
    assert run("keys", "revoke", made["id"])["revoked_at"]
    assert [row["id"] for row in run("keys", "list", "--tenant", "default")] == [rotated["id"], made["id"]]
    assert run("keys", "allow-unauthenticated") == {"authentication_required": False}
    for args, code, message in (
        (("create",), 2, "--tenant"),
        (("create", "--tenant", "no"), 1, "there is no tenant 'no'"),
        (("create", "--tenant", "default", "--scopes", "fly"), 2, "--scopes: Input should be 'infer', 'upload' or"),
        (("create", "--tenant", "default", "--expires", "soon"), 2, "--expires: 'soon' is neither a time from now"),
        (("revoke", "key_no"), 1, "there is no key 'key_no'"),
        (("rotate", made["id"]), 1, "is revoked or has expired"),
    ):
        assert message in run("keys", *args, code=code).output, args


def test_the_first_key_says_what_it_changes(tmp_path: Path) -> None:
    told = []
    for _ in range(2):
        command = ["keys", "create", "--tenant", "default", "--database", url_of(tmp_path)]
        told.append(CliRunner().invoke(main, command).stderr)
    assert "every request on this store needs a key" in told[0]
    assert told[0].startswith(f"there was no store at {url_of(tmp_path)}: it was made\n")
    assert told[1] == ""

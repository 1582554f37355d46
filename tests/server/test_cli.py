"""The command line: without a server in this process, then with a real one in a process of its own."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import click
import httpx
import pytest
from cdvft.backbone import load_backbone
from cdvft.checkpoint import adapter_files, read_folder, write_folder
from cdvft_server.cli import main
from cdvft_server.cli.announce import NO_KEY
from cdvft_server.config import OTHER_VARIABLES, ServeConfig
from click.testing import CliRunner, Result

from tests.e2e.serving import Server, start
from tests.tiny import random_adapter, tiny_llama, tiny_roberta

Run = Callable[..., Result]
Names = tuple[str, ...]
CLI = (sys.executable, "-m", "cdvft_server.cli")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """llama, roberta; adapters/{writer,labeller,scorer} of llama, encoder/labeller of roberta."""
    root = tmp_path_factory.mktemp("cli")
    for make, kind, where, tasks in (
        (tiny_llama, "llama", "adapters", {"writer": "lm", "labeller": "classification", "scorer": "regression"}),
        (tiny_roberta, "roberta", "encoder", {"labeller": "classification"}),
    ):
        info = load_backbone(str(make(root / kind))).info
        for seed, (name, task) in enumerate(tasks.items()):
            adapter = random_adapter(info, seed, task)  # type: ignore[arg-type]
            write_folder(root / where / name, adapter_files(adapter, info))
    return root


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    running = start(folder / "store.db", "--base", str(folder / "llama"), "--adapters", str(folder / "adapters"))
    yield running
    if running.process.poll() is None:
        running.stop()


@pytest.fixture
def run(server: Server) -> Run:
    """A client command against the server."""

    def invoke(*args: object, code: int = 0) -> Result:
        result = CliRunner().invoke(main, [str(arg) for arg in args], env={"CDVFT_SERVER": server.url})
        assert result.exit_code == code, result.output
        return result

    return invoke


def alone(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def commands(group: click.Command = main, path: Names = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if isinstance(group, click.Group):
        for name in group.list_commands(click.Context(group)):
            found = group.get_command(click.Context(group), name)
            assert found is not None
            yield from commands(found, (*path, name))
    else:
        yield path, group


def test_help_of_every_command_and_the_version() -> None:
    assert {" ".join(path) for path, _ in commands()} == {
        "serve", "train classify", "train lm", "push", "adapters", "alias", "unalias", "pin", "unpin", "download", "rm",
        "usage", "classify", "complete", "inspect", "compare", "bench classify", "bench generate",
        "tenants create", "tenants set", "tenants list", "tenants rm",
        "keys create", "keys list", "keys rotate", "keys revoke", "keys allow-unauthenticated",
    }  # fmt: skip
    for path, command in commands():
        result = alone(*path, "--help")
        assert result.exit_code == 0
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help, (path, option.name)
                assert option.opts[0] in result.output
    assert re.fullmatch(r"cdvft \d+\.\d+\.\d+\n", alone("--version").output)


def test_help_loads_neither_torch_nor_the_web_server() -> None:
    heavy = ("torch", "transformers", "fastapi", "pydantic", "httpx")
    for command in ("", "train classify", "bench generate"):
        code = f"""
import sys
from cdvft_server.cli import main
main({command.split()} + ["--help"], standalone_mode=False)
print([name for name in {heavy} if name in sys.modules], file=sys.stderr)
"""
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert result.stderr == "[]\n", command
        assert "Usage" in result.stdout


def test_every_option_has_a_variable_that_the_server_knows() -> None:
    known = {f"CDVFT_{name.upper()}" for name in ServeConfig.model_fields}
    variables = set()
    for path, command in commands():
        options = [p for p in command.params if isinstance(p, click.Option) and p.name]
        if path != ("serve",):
            assert all(option.envvar == f"CDVFT_{_name(option)}" for option in options), path
            variables |= {str(option.envvar) for option in options}
        else:
            assert {f"CDVFT_{_name(option)}" for option in options} == known
    assert variables <= known | set(OTHER_VARIABLES)


def _name(option: click.Option) -> str:
    return option.opts[0].removeprefix("--").replace("-", "_").upper()


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["fly"], 2, "No such command 'fly'"),
        (["serve", "--prot", "1"], 2, "No such option"),
        (["serve", "--port", "many"], 2, "--port: Input should be a valid integer"),
        (["serve", "--port", "65536"], 2, "--port: Input should be less than or equal to 65535"),
        (["serve", "--dtype", "int3"], 2, "--dtype: Input should be 'auto'"),
        (["serve", "--served-name", "a b"], 2, "--served-name: the served name breaks the rule"),
        (["serve", "--host", "0.0.0.0", "--port", "0"], 1, "--allow-unauthenticated"),
        (["serve", "--host", "no.such.host.invalid"], 1, "cannot listen on no.such.host.invalid port 8000"),
        (["serve", "--base", "./nowhere", "--port", "0"], 1, "no config.json there"),
        (["serve", "--database", "mysql://x/y", "--port", "0"], 1, "mysql"),
        (["serve", "--preload", "some"], 2, "--preload: 'some' is neither a number of adapters nor all"),
        (["serve", "--preload", "-1"], 2, "--preload: '-1' is neither a number of adapters nor all"),
        (["serve", "--device", "gpu"], 2, "--device: 'gpu' is not known; use auto, cpu, cuda or cuda:N"),
        (["train", "classify"], 2, "Missing option '--data'"),
        (["train", "classify", "--data", "none.jsonl", "--out", "x"], 2, "'none.jsonl' does not exist"),
        (["inspect", "."], 1, "has no adapter_config.json"),
        (["rm", "name@prod"], 2, "'prod' is not a version's number"),
        (["classify", "x", "--pairs", "one"], 2, "--pairs needs an even number of texts, there are 1"),
        (["classify", "x"], 2, "Missing argument 'TEXT...'"),
        (["push", "none"], 2, "'none' does not exist"),
        (["alias", "x", "prod", "0"], 2, "'VERSION': 0 is not in the range x>=1"),
        (["download", "x", "--out", "."], 2, "--out . is there already; give a new folder"),
        (["push", "rows.jsonl"], 2, "rows.jsonl is no adapter; give a folder that `cdvft train` or PEFT wrote"),
        (["push", "labels.json"], 2, "labels.json is one file of an adapter; give its folder, or a zip or tar.gz"),
        (["adapters", "--server", "127.0.0.1:8123"], 1, "--server (or CDVFT_SERVER) '127.0.0.1:8123' is not like http"),
        (["adapters", "--server", "http://h", "--api-key", "a b"], 1, "--api-key (or CDVFT_API_KEY) has a blank"),
        (
            ["adapters", "--server", "http://127.0.0.1:1"],
            1,
            "is the server running there? If not, name another with --server or CDVFT_SERVER",
        ),
    ],
)
def test_mistakes_are_one_clear_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], code: int, message: str
) -> None:
    """On standard error, after the usage where the command line itself was wrong."""
    monkeypatch.chdir(folder)
    for name in ("rows.jsonl", "labels.json"):
        (folder / name).touch()
    if args[0] in ("serve", "inspect") and "--base" not in args:
        args = [*args, "--base", str(folder / "llama")]
    variables = {"CDVFT_DATABASE": f"sqlite:///{folder}/mistakes.db"}
    if "--host" not in args:
        variables["CDVFT_PORT"] = "0"
    result = CliRunner().invoke(main, args, env=variables)
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    assert message in last


def test_variables_are_checked_like_options() -> None:
    result = CliRunner().invoke(main, ["serve"], env={"CDVFT_PORT": "many"})
    assert result.exit_code == 2
    assert "CDVFT_PORT: Input should be a valid integer" in result.output
    result = CliRunner().invoke(main, ["serve"], env={"CDVFT_PROT": "1"})
    assert result.exit_code == 2
    assert "unknown variables CDVFT_PROT" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--database", "foo.db"], "'foo.db' is not a database URL; use sqlite:////absolute/path/store.db"),
        (["--database", "mysql://u@h/db"], "mysql databases are not supported"),
        (["--adapters", "/nope"], "--adapters /nope: no such folder"),
        (["--base", "./nowhere"], "no config.json there"),
        (["--base", "path/to/roberta-base"], "--base path/to/roberta-base: no such folder"),
        (["--base", "gpt2"], "model_type 'gpt2' is not served; served: roberta, "),
    ],
)
def test_what_can_be_told_at_once_is_told_before_torch_is_loaded(
    tmp_path: Path, options: list[str], message: str
) -> None:
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text('{"model_type": "gpt2"}')
    code = f"""
import sys
from cdvft_server.cli import main
from cdvft_server.cli.announce import NO_KEY
try:
    main({["serve", "--port", "0", *options]})
finally:
    print([name for name in ("torch", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "[]\n")
    assert done.stderr.startswith("Error: ")
    assert message in done.stderr
    assert "loading" not in done.stderr


def test_a_device_that_is_not_there_is_one_line(folder: Path, tmp_path: Path) -> None:
    variables = {"CDVFT_DATABASE": f"sqlite:///{tmp_path}/store.db", "CUDA_VISIBLE_DEVICES": ""}
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "a", "label": 1}\n{"text": "b", "label": 2}\n')
    train = ["train", "classify", "--data", str(data), "--out", str(tmp_path / "out")]
    for command in (["serve", "--port", "0"], train):
        done = subprocess.run(
            [*CLI, *command, "--base", str(folder / "llama"), "--device", "cuda"],
            env={**os.environ, **variables}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        last = done.stderr.splitlines()[-1]
        assert re.match("Error: --device cuda: .*CUDA.*; use cpu or auto", last), done.stderr
        assert "Traceback" not in done.stderr


def test_what_comes_from_a_variable_is_told(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDVFT_NAME", "from-outside")
    monkeypatch.setenv("CDVFT_API_KEY", "secret-key")
    pushed = run("push", folder / "adapters" / "writer")
    assert pushed.stderr == "--name is from-outside (CDVFT_NAME)\n"
    assert pushed.stdout.startswith("uploaded from-outside version 1")
    told = run("rm", "from-outside")
    assert (told.stdout, told.stderr) == ("deleted from-outside, its content is still used\n", "")
    refused = CliRunner().invoke(main, ["serve", "--adapters", "/nope", "--port", "0"])
    assert refused.stderr.splitlines()[0] == "CDVFT_NAME is no setting of serve: not used"


def test_a_port_in_use_is_told_before_anything_is_loaded(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = alone("serve", "--base", folder / "llama", "--port", port)
    assert result.exit_code == 1
    assert result.output == (
        f"Error: cannot listen on 127.0.0.1 port {port}: Address already in use; give another --port or --host\n"
    )


def test_the_announced_calls_work_as_pasted(server: Server) -> None:
    text = wait_for_line(server, "classify:")
    assert f"llama is ready on {server.url} with 3 adapters" in text
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("curl ")]
    assert len(lines) == 2
    for line, route, model in zip(lines, ("completions", "classify"), ("writer", "labeller"), strict=True):
        _, url, flag, header, data_flag, data = shlex.split(line)
        assert (url, flag, data_flag) == (f"{server.url}/v1/{route}", "-H", "-d")
        name, _, value = header.partition(": ")
        answer = httpx.post(url, headers={name: value}, content=data).raise_for_status()
        assert answer.headers["x-adapter"] == model
        assert answer.headers["x-adapter-mode"] == "fft"


def wait_for_line(server: Server, wanted: str) -> str:
    """The server's output once the line after `wanted` is there."""
    for _ in range(1200):
        lines = "".join(server.log).splitlines()
        if wanted in lines and len(lines) > lines.index(wanted) + 1:
            return "\n".join(lines)
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(timeout=0.1)
    raise AssertionError("".join(server.log))


def test_push_tells_what_the_config_leaves_open_and_takes_labels(run: Run, folder: Path, tmp_path: Path) -> None:
    files = read_folder(folder / "adapters" / "labeller")
    config = {**json.loads(files.config), "labels": None, "base_digest": None}
    write_folder(tmp_path / "bare", replace(files, config=json.dumps(config).encode()))
    told = run("push", tmp_path / "bare")
    assert "note: its config names no labels, they are LABEL_0, ...; --labels a,b,c names them" in told.stderr
    assert "note: its config has no base_digest: it fits this base by its shapes" in told.stderr
    packed = shutil.make_archive(str(tmp_path / "packed"), "gztar", tmp_path / "bare")
    named = run("push", packed, "--labels", "no, yes", "--json")
    made = json.loads(named.stdout)
    assert (made["id"], made["labels"]) == ("packed", ["no", "yes"])
    assert "base_digest" not in run("push", folder / "adapters" / "labeller", "--name", "whole").stderr
    for name in ("bare", "packed", "whole"):
        assert run("rm", name, "--yes").output.startswith(f"deleted {name}, ")


def test_push_list_and_remove(run: Run, folder: Path) -> None:
    source = folder / "adapters" / "writer"
    assert re.match(
        r"uploaded mine version 1 \(cdvft lm, [\d,]+ numbers, ", run("push", source, "--name", "mine").output
    )
    assert run("push", source, "--name", "mine").output.startswith("unchanged: mine version 1")
    for option, public in (("--public", True), (None, True), ("--private", False), (None, False)):
        told = run("push", source, "--name", "mine", *filter(None, [option])).stdout.splitlines()[0]
        assert told.endswith("; other tenants may use it") == public
    other = run("push", folder / "adapters" / "scorer", "--name", "mine", "--alias", "prod", "--json")
    made = json.loads(other.output)
    assert (made["version"], made["aliases"]) == (2, {"latest": 2, "prod": 2})
    lines = run("adapters").output.splitlines()
    row = next(line for line in lines if line.startswith("mine "))
    assert re.match(rf"mine +2 +cdvft +regression .*latest=2, prod=2 .*{made['digest'][:19]}", row)
    assert json.loads(run("adapters", "--json").output)[0]["name"] == "mine"
    assert "alias prod" in run("rm", "mine@2", code=1).output
    assert run("rm", "mine@1").output.startswith("deleted version 1 of mine, ")
    assert run("rm", "mine").output.startswith("deleted mine, ")
    assert "404 model_not_found" in run("rm", "mine", code=1).output


def test_usage(run: Run) -> None:
    run("complete", "writer", "the cat", "--max-tokens", 2)
    lines = run("usage", "--adapter", "writer").output.splitlines()
    assert lines[0].split()[:3] == ["FROM", "TENANT", "ADAPTER"]
    assert lines[1].split()[:2] == ["default", "writer"]
    (entry,) = json.loads(run("usage", "--group-by", "version", "--adapter", "writer", "--json").output)
    assert (entry["adapter"], entry["version"]) == ("writer", 1)
    assert entry["requests"] > 0
    rows = run("usage", "--csv", "--start", "2026-01-01").output.splitlines()
    assert rows[0].startswith("start,end,tenant,adapter,version,digest,requests")
    assert any(",default,writer," in row for row in rows)
    assert "give --csv or --json" in run("usage", "--csv", "--json", code=2).output
    assert "ISO 8601" in run("usage", "--start", "yesterday", code=1).output


def test_pin_and_unpin(run: Run) -> None:
    assert run("pin", "writer").output == "writer version 1 stays on the device\n"
    assert run("unpin", "writer").output == "writer version 1 may leave the device\n"
    assert json.loads(run("pin", "writer", "--json").output)["pinned"] is True
    assert json.loads(run("unpin", "writer", "--json").output)["pinned"] is False
    assert "there is no adapter 'nobody'" in run("pin", "nobody", code=1).output


def test_aliases_and_downloads(run: Run, folder: Path, tmp_path: Path) -> None:
    digests = []
    for source in ("writer", "scorer"):
        digests.append(
            json.loads(run("push", folder / "adapters" / source, "--name", "two", "--json").output)["digest"]
        )
    assert run("alias", "two", "prod", 1).output == "two: latest is version 2, prod is version 1\n"
    assert json.loads(run("alias", "two", "beta", 2, "--json").output)["aliases"] == {"beta": 2, "latest": 2, "prod": 1}
    assert run("unalias", "two", "beta").output == "two: latest is version 2, prod is version 1\n"
    assert "has no alias 'beta'" in run("unalias", "two", "beta", code=1).output
    assert "has no version 9" in run("alias", "two", "prod", 9, code=1).output
    for selector, source in (("", "scorer"), ("@1", "writer"), ("@prod", "writer"), (f"@{digests[0][:20]}", "writer")):
        out = tmp_path / f"out{selector.replace(':', '-')}"
        assert run("download", f"two{selector}", "--out", out).output.endswith(f" is in {out}\n")
        assert read_folder(out) == read_folder(folder / "adapters" / source)
    packed = tmp_path / "two.zip"
    assert run("download", "two@prod", "--out", packed).output == f"two version 1 is in {packed}\n"
    assert run("push", packed, "--name", "two").output.startswith("unchanged: two version 1")
    assert "--out" in run("download", "two", "--out", packed, code=2).output
    assert (
        "two has no alias 'beta'; there are latest, prod"
        in run("download", "two@beta", "--out", tmp_path / "no", code=2).output
    )
    assert "404" in run("download", "nobody", "--out", tmp_path / "no", code=1).output
    assert not (tmp_path / "no").exists()
    run("rm", "two")


def test_push_takes_the_folder_name_and_refuses_other_bases(run: Run, folder: Path) -> None:
    assert run("push", folder / "adapters" / "writer").output.startswith("unchanged: writer version 1")
    refused = run("push", folder / "encoder" / "labeller", "--name", "foreign", code=1).output
    assert "422 invalid_adapter" in refused
    assert "trained on another base" in refused


def test_classify_prints_a_line_for_each_text(run: Run) -> None:
    lines = run("classify", "labeller", "hello", "the cat").output.splitlines()
    assert [re.sub(r"\d\.\d+", "N", line) in ("no N\thello", "yes N\thello") for line in lines] == [True, False]
    both = run("classify", "labeller", "hello", "--top-k", 2).output
    shown = dict(part.split() for part in both.split("\t")[0].split(", "))
    assert set(shown) == {"no", "yes"}
    assert sum(map(float, shown.values())) == pytest.approx(1, abs=2e-3)
    assert re.fullmatch(r"-?\d+\.\d{4}\thello\n", run("classify", "scorer", "hello").output)
    pairs = json.loads(run("classify", "labeller", "--pairs", "a", "b", "--json").output)
    joint = json.loads(run("classify", "labeller", "a", "--json").output)
    assert len(pairs["data"]) == 1
    assert pairs["data"][0]["score"] != joint["data"][0]["score"]
    assert "at most" in run("classify", "labeller", "x" * 400, code=1).output
    assert run("classify", "labeller", "x" * 400, "--truncate").output


def test_complete_streams_the_same_text_that_json_has(run: Run) -> None:
    greedy = ("--max-tokens", 12, "--temperature", 0)
    for name in ("writer", "llama"):
        whole = json.loads(run("complete", name, "hello", *greedy, "--json").output)
        assert run("complete", name, "hello", *greedy).output == whole["choices"][0]["text"] + "\n"
    chat = json.loads(run("complete", "writer", "hello", "--chat", *greedy, "--json").output)
    assert (
        run("complete", "writer", "hello", "--chat", *greedy).output == chat["choices"][0]["message"]["content"] + "\n"
    )
    seeded = ("complete", "writer", "hello", "--max-tokens", 20, "--seed", 5)
    assert run(*seeded).output == run(*seeded).output
    assert "wrong_task" in run("complete", "labeller", "hello", code=1).output


def test_inspect_shows_what_the_folder_costs(folder: Path) -> None:
    base = ("--base", folder / "llama")
    shown = alone("inspect", folder / "adapters" / "labeller", *base)
    assert shown.exit_code == 0
    found = json.loads(alone("inspect", folder / "adapters" / "labeller", *base, "--json").output)
    assert found["labels"] == ["no", "yes"]
    assert found["base_verified"] is True
    assert found["head"] == {"type": "linear", "pooling": "last", "outputs": 2}
    # two layers' q [32, 32] and v [16, 32]: three vectors; blocks of gcd 16 in v: 32 + 2 * 16 + 16
    assert found["parameters"] == 2 * (3 * 32 + 32 + 2 * 16 + 16) == sum(s["parameters"] for s in found["sites"])
    assert found["head_parameters"] == 2 * 32 + 2
    assert found["flops_per_token"] == sum(site["flops_per_token"] for site in found["sites"]) > 0
    files = folder / "adapters" / "labeller"
    assert found["disk_bytes"] == sum(path.stat().st_size for path in files.iterdir())
    for fact in (found["digest"], "no, yes", "352, and 66 in the head", "layers.1.self_attn.v_proj  32 -> 16"):
        assert fact in shown.output


def test_compare_shows_adapters_side_by_side(folder: Path) -> None:
    folders = [folder / "adapters" / name for name in ("labeller", "writer")]
    base = ("--base", folder / "llama")
    shown = alone("compare", *folders, *base)
    assert shown.exit_code == 0, shown.output
    header, *lines = shown.output.splitlines()
    assert header.split("  ")[0] == "ADAPTER"
    assert len(lines) == 2
    found = json.loads(alone("compare", *folders, *base, "--json").output)
    for own, path, line in zip(found, folders, lines, strict=True):
        alike = json.loads(alone("inspect", path, *base, "--json").output)
        assert own == {"folder": str(path), **alike}
        assert line.startswith(str(path))
        assert f"{own['parameters']:,}" in line
        assert f"{own['paper_flops_per_token']:,.0f}" in line
    assert alone("compare").exit_code == 2


def test_train_then_push_then_ask(run: Run, folder: Path) -> None:
    """The whole way, from JSON lines to answers, and the last line of standard output is the result."""
    rows = [{"text": ("abc", "xyz")[k % 2] * (k % 3 + 1), "label": ("early", "late")[k % 2]} for k in range(64)]
    data, out = folder / "letters.jsonl", folder / "letters"
    data.write_text("\n".join(map(json.dumps, rows)))
    args = ["train", "classify", "--base", folder / "llama", "--data", data, "--out", out]
    options = ["--targets", "all-linear", "--epochs", 4, "--lr", "1e-2", "--lr-head", "3e-2", "--batch-size", 8]
    trained = subprocess.run([*CLI, *map(str, args + options)], capture_output=True, text=True, check=True)
    assert "epoch 4/4" in trained.stderr
    result = json.loads(trained.stdout.splitlines()[-1])
    assert {"accuracy", "matthews", "parameters", "seconds", "truncated"} <= set(result)
    assert result["accuracy"] == 1.0
    made = json.loads(run("push", out, "--json").output)
    assert made["digest"] == result["digest"]
    answers = run("classify", "letters", "abcabc", "xyzxyz").output.splitlines()
    assert [line.split()[0] for line in answers] == ["early", "late"]
    variables = {"CDVFT_EPOCHS": "none"}
    wrong = CliRunner().invoke(main, [str(arg) for arg in args], env=variables)
    assert wrong.exit_code == 2
    assert "'none' is not a valid integer" in wrong.output


def test_a_folder_of_tasks_is_trained_and_pushed(run: Run, folder: Path, server: Server) -> None:
    """One result line for each task, each adapter on the server under its folder's name; a bad task is told last."""
    tasks = folder / "tasks"
    for name, words in (("first-task", ("abc", "xyz")), ("second-task", ("hij", "nop"))):
        rows = [{"text": words[k % 2] * (k % 3 + 1), "label": words[k % 2]} for k in range(32)]
        (tasks / name).mkdir(parents=True)
        (tasks / name / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tasks / "third-task").mkdir()
    (tasks / "third-task" / "train.csv").write_text("text,label\n")
    args = ["train", "classify", "--base", folder / "llama", "--data", tasks, "--out", folder / "trained"]
    options = ["--epochs", 1, "--push", "--server", server.url]
    trained = subprocess.run([*CLI, *map(str, args + options)], capture_output=True, text=True)  # noqa: PLW1510
    assert trained.returncode == 1
    assert "1 tasks failed: third-task" in trained.stderr
    results = [json.loads(line) for line in trained.stdout.splitlines()]
    assert [(result["name"], result["version"]) for result in results] == [("first-task", 1), ("second-task", 1)]
    for result in results:
        assert result["digest"] in run("adapters", "--json").output
        assert run("classify", result["name"], "abc").exit_code == 0


def test_push_options_without_a_server_or_a_push(folder: Path) -> None:
    """A server that cannot be reached is told before the training, not after it."""
    data = folder / "few.jsonl"
    data.write_text("\n".join(json.dumps({"text": "abc"[k % 3], "label": k % 2}) for k in range(20)))
    args = ("train", "classify", "--base", folder / "llama", "--data", data, "--out", folder / "never")
    result = alone(*args, "--push", "--server", "http://127.0.0.1:9")
    assert result.exit_code == 1
    assert "cannot reach http://127.0.0.1:9" in result.output
    assert not (folder / "never").exists()
    assert "--name is the adapter's on the server" in alone(*args, "--name", "x").output


def test_train_errors_are_one_line(folder: Path) -> None:
    data = folder / "broken.jsonl"
    data.write_text('{"text": "x", "label": 1}\n{"text": "y"}\n')
    result = alone("train", "classify", "--base", folder / "llama", "--data", data, "--out", folder / "never")
    assert result.exit_code == 1
    assert result.output == f"Error: {data}:2: a row has either a label or a score; this has text\n"


def test_several_adapters_after_one_option_and_an_encoder_announces_no_generation(folder: Path) -> None:
    info = load_backbone(str(folder / "roberta")).info
    for name, seed in (("one", 1), ("two", 2)):
        write_folder(folder / "more" / name, adapter_files(random_adapter(info, seed, "classification"), info))
    more = [str(folder / "more" / "one"), str(folder / "more" / "two")]
    server = start(folder / "encoder.db", "--adapters", *more, "--base", str(folder / "roberta"))
    text = wait_for_line(server, "classify:")
    assert "with 2 adapters" in text
    assert "generate:" not in text
    assert server.stop() == 0


def test_a_base_without_adapters_announces_how_to_upload_one(folder: Path) -> None:
    server = start(folder / "empty.db", "--base", str(folder / "roberta"))
    text = wait_for_line(server, "upload an adapter:")
    told = [
        f"roberta is ready on {server.url} with 0 adapters",
        f"{NO_KEY} (cdvft keys create --tenant default --database sqlite:///{folder / 'empty.db'})",
        "upload an adapter:",
        f"  cdvft push DIR --server {server.url}",
    ]
    assert "\n".join(told) in text
    assert server.stop() == 0


def test_ctrl_c_drains(server: Server) -> None:
    """A stream that runs when the signal comes is answered to its end, and the exit code is 0. Ends the server."""
    body = {"model": "writer", "prompt": "hi", "max_tokens": 200, "stream": True, "ignore_eos": True}
    pieces = 0
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                pieces += 1
                if pieces == 1:
                    server.process.send_signal(signal.SIGINT)
                last = json.loads(line.removeprefix("data: "))
        assert line == ""
    assert last["choices"][0]["finish_reason"] == "length"
    assert server.process.wait(timeout=60) == 0
    assert "Traceback" not in "".join(server.log)

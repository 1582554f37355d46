"""Each service's command from docker/compose.yaml, run without Docker: PostgreSQL, the server on it, and Prometheus
that scrapes it. Only Grafana's is not: what it is given is checked."""

import json
import re
import shutil
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.serving import wait_until
from tests.server.deployment.compose import DOCKER, compose, environment, running, served
from tests.server.postgres import Postgres
from tests.server.postgres import running as postgresql

DASHBOARD = json.loads((DOCKER / "grafana/dashboards/cdvft.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """With the settings of the compose file's command."""
    with postgresql(settings_of(compose()["services"]["postgres"]["command"])) as started:
        if started is None:
            pytest.skip("PostgreSQL's server (initdb, pg_ctl) is not installed")
        yield started


def settings_of(command: list[str]) -> dict[str, str]:
    """`postgres -c name=value -c ...`"""
    assert command[0] == "postgres"
    assert set(command[1::2]) == {"-c"}
    return dict(text.split("=", 1) for text in command[2::2])


@pytest.fixture(scope="module")
def server(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The compose file's own flags and variables, on that PostgreSQL."""
    folder = tmp_path_factory.mktemp("deployed")
    own = compose()["services"]["server"]
    variables = environment(own, {"POSTGRES_PASSWORD": "not asked for on a socket of this machine"})
    assert variables["CDVFT_DATABASE"] == "postgresql://cdvft@postgres:5432/cdvft"
    postgres.execute("CREATE DATABASE cdvft")
    variables["CDVFT_DATABASE"] = postgres.url("cdvft")
    with running(served(own["command"]), {**variables, "XDG_DATA_HOME": str(folder)}) as process:
        yield process.find(r"ready on (http://\S+)")
        assert process.end() in (0, -signal.SIGTERM), "".join(process.log)  # as Docker stops it
    assert not list(folder.rglob("*.db"))


@pytest.fixture(scope="module")
def prometheus(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed")
    folder = tmp_path_factory.mktemp("prometheus")
    config = (DOCKER / "prometheus.yml").read_text()
    target = server.removeprefix("http://")
    assert config.count("server:8000") == 1
    (folder / "prometheus.yml").write_text(config.replace("server:8000", target))
    places = {
        "/etc/prometheus/prometheus.yml": f"{folder}/prometheus.yml",
        "=/prometheus": f"={folder}/data",
        "0.0.0.0:9090": "127.0.0.1:0",
    }
    command = [program, *compose()["services"]["prometheus"]["command"]]
    for inside, here in places.items():
        command = [word.replace(inside, here) for word in command]
    with running(command) as process:
        address = process.find(r'"Listening on" address=(\S+)')
        with httpx.Client(base_url=f"http://{address}", timeout=60) as client:
            yield client


def metrics(server: str) -> set[str]:
    """Names of samples."""
    text = httpx.get(f"{server}/metrics", timeout=60).raise_for_status().text
    return set(re.findall(r"^(cdvft_\w+)", text, re.M))


def test_postgresql_takes_its_commands_settings(postgres: Postgres) -> None:
    units = {"idle_in_transaction_session_timeout": ("60s", "1min")}
    for name, value in settings_of(compose()["services"]["postgres"]["command"]).items():
        assert postgres.execute(f"SHOW {name}")[0][0] in (value, *units.get(name, ())), name


def test_the_servers_command(server: str, postgres: Postgres) -> None:
    """It listens, answers by the name that Prometheus calls it, and by no other."""
    for host, status in (("server:8000", 200), ("evil.example", 403)):
        assert httpx.get(f"{server}/health", headers={"host": host}, timeout=60).status_code == status
    assert httpx.get(f"{server}/ready", timeout=60).status_code == 200
    body = {"model": "sea-tales", "prompt": "Leo was", "max_tokens": 4, "temperature": 0}
    answer = httpx.post(f"{server}/v1/completions", json=body, timeout=60)
    assert (answer.status_code, answer.headers["x-adapter"]) == (200, "sea-tales")
    assert postgres.execute("SELECT count(*) FROM adapters WHERE name = 'sea-tales'", database="cdvft") == [(1,)]


def test_the_images_health_check(server: str) -> None:
    line = re.search(r"^HEALTHCHECK .* CMD (\[.*\])$", (DOCKER / "Dockerfile").read_text(), re.M)
    assert line is not None
    command = json.loads(line[1])
    for port, code in ((server.rpartition(":")[2], 0), ("1", 1)):
        with running(command, {"CDVFT_PORT": port}) as process:
            assert process.process.wait(60) == code


def test_every_metric_of_the_dashboard_is_there(server: str) -> None:
    classified = {"model": "topic", "input": "I am glad about the goat."}
    assert httpx.post(f"{server}/v1/classify", json=classified, timeout=60).status_code == 200
    used = set(re.findall(r"\bcdvft_\w+", " ".join(QUERIES)))
    assert used
    assert used <= metrics(server)


def test_prometheus_scrapes_the_server_and_answers_the_dashboard(server: str, prometheus: httpx.Client) -> None:
    def result(query: str) -> list[Any]:
        answer = prometheus.get("/api/v1/query", params={"query": query})
        assert answer.status_code == 200, f"{query}: {answer.text}"
        found: list[Any] = answer.json()["data"]["result"]
        return found

    wait_until(lambda: [row["value"][1] for row in result("up")] == ["1"], "the target is up")
    for query in QUERIES:
        result(query.replace("$__rate_interval", "1m"))
    assert result("cdvft_kv_tokens")

"""What the files under docker/ say: hardened containers, no weak secrets, provisioning that fits together."""

import json
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml
from cdvft_server.config import ServeConfig

from tests.server.deployment.compose import DOCKER, VARIABLE, compose, filled

SERVICES = ["server", "postgres", "prometheus", "grafana"]
GRAFANA = DOCKER / "grafana"


def program(name: str) -> str:
    """Beside this interpreter, or in the path."""
    found = shutil.which(name, path=os.pathsep.join((sysconfig.get_path("scripts"), os.environ["PATH"])))
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@pytest.fixture(params=SERVICES)
def service(request: pytest.FixtureRequest) -> dict[str, Any]:
    own: dict[str, Any] = compose()["services"][request.param]
    return own


def test_these_services_and_no_others() -> None:
    assert sorted(compose()["services"]) == sorted(SERVICES)


def test_it_runs_without_root_on_a_read_only_system(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"].split(":")[0] not in ("", "0", "root")
    for option in ("privileged", "network_mode", "pid", "ipc", "devices"):
        assert option not in service


def test_it_is_published_on_this_machine_only(service: dict[str, Any]) -> None:
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_postgresql_is_reached_by_the_server_only() -> None:
    file = compose()
    assert file["networks"]["database"]["internal"] is True
    inside = [name for name in SERVICES if "database" in file["services"][name]["networks"]]
    assert inside == ["server", "postgres"]
    assert file["services"]["postgres"]["networks"] == ["database"]
    assert "ports" not in file["services"]["postgres"]


def test_its_health_is_checked(service: dict[str, Any]) -> None:
    if service["image"].startswith("cdvft-server"):
        assert "\nHEALTHCHECK " in (DOCKER / "Dockerfile").read_text()
    else:
        assert service["healthcheck"]["test"][0] == "CMD"


def test_its_image_has_a_version(service: dict[str, Any]) -> None:
    tag = service["image"].partition(":")[2]
    assert tag
    assert tag != "latest"


def test_secrets_are_asked_for_and_have_no_default(service: dict[str, Any]) -> None:
    secrets = {name: text for name, text in service.get("environment", {}).items() if "PASSWORD" in name}
    for text in secrets.values():
        assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", text), text
        with pytest.raises(KeyError):
            filled(text, {})
    example = dict(re.findall(r"^(\w+)=(.*)$", (DOCKER / "env.example").read_text(), re.M))
    assert set(example.values()) == {""}
    assert {VARIABLE.findall(text)[0][0] for text in secrets.values()} <= set(example)
    assert "docker/.env" in (DOCKER.parent / ".gitignore").read_text()


def test_every_volume_and_network_is_declared(service: dict[str, Any]) -> None:
    file = compose()
    for mount in service["volumes"]:
        source = mount.split(":")[0]
        assert (DOCKER / source).exists() if source.startswith(".") else source in file["volumes"], mount
        assert not source.startswith(".") or mount.endswith(":ro")
    assert set(service["networks"]) <= set(file["networks"])
    assert set(service.get("depends_on", [])) <= set(SERVICES)


def test_the_server_has_time_to_drain() -> None:
    own = compose()["services"]["server"]
    seconds = float(own["command"][own["command"].index("--drain-seconds") + 1])
    assert float(own["stop_grace_period"].removesuffix("s")) >= seconds + 10


def test_the_servers_variables_are_settings() -> None:
    own = compose()["services"]["server"]["environment"]
    known = {f"CDVFT_{name.upper()}" for name in ServeConfig.model_fields}
    assert {name for name in own if name.startswith("CDVFT_")} <= known


def test_the_gpu_file_changes_the_server_only() -> None:
    own = compose("compose.cuda.yaml")["services"]
    assert list(own) == ["server"]
    assert own["server"]["build"]["target"] == "cuda"
    (device,) = own["server"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])


def instructions() -> list[str]:
    """One a line."""
    text = re.sub(r"\\\n\s*", "", (DOCKER / "Dockerfile").read_text())
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_the_images_targets() -> None:
    stages = [line.split() for line in instructions() if line.startswith("FROM")]
    assert {"cpu", "cuda"} <= {words[3] for words in stages}
    for line in instructions():
        if line.startswith("COPY") and "--from=" not in line:
            assert all((DOCKER.parent / source).exists() for source in line.split()[1:-1]), line
    user = next(line for line in instructions() if line.startswith("USER"))
    assert user == "USER " + compose()["services"]["server"]["user"]


def test_the_images_hold_no_secret() -> None:
    assert not [line for line in instructions() if line.startswith("ARG")]
    assert not re.search(r"password|secret|token|api_?key", "\n".join(instructions()), re.I)


def test_the_dockerfile_passes_its_linter() -> None:
    done = subprocess.run(
        [program("hadolint"), str(DOCKER / "Dockerfile")], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_prometheus_configuration_passes_its_checker() -> None:
    done = subprocess.run(
        [program("promtool"), "check", "config", str(DOCKER / "prometheus.yml")],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_prometheus_asks_the_server_where_it_listens() -> None:
    (job,) = yaml.safe_load((DOCKER / "prometheus.yml").read_text())["scrape_configs"]
    own = compose()["services"]["server"]["command"]
    assert job["static_configs"] == [{"targets": [f"server:{own[own.index('--port') + 1]}"]}]
    assert own[own.index("--allowed-hosts") + 1] == "server"


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/cdvft.yaml").read_text())["providers"]
    mounts = dict(mount.split(":")[1::-1] for mount in compose()["services"]["grafana"]["volumes"])
    assert mounts[provider["options"]["path"]] == "./grafana/dashboards"
    dashboard = json.loads((GRAFANA / "dashboards/cdvft.json").read_text())
    identifiers = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(identifiers)) == len(identifiers) > 0
    for panel in dashboard["panels"]:
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {source["uid"]}
    for path in GRAFANA.rglob("*.json"):
        assert Path(path).parent.name == "dashboards"

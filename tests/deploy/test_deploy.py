"""What stands in deploy/: valid for those who read it, and true to the program."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from avyay.config import Environment, load_settings

DEPLOY = Path(__file__).parents[2] / "deploy"
PORTS = {"gateway": 8080, "marga": 8081, "rag": 8082, "raksha": 8083, "siddhi": 8084, "engine": 8086}
MANIFESTS = sorted(path.name for path in (DEPLOY / "kubernetes").glob("*.yaml"))


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text()))


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / "compose.yaml").read_text()))


def commands() -> list[list[str]]:
    found = [list(map(str, one["command"])) for one in compose()["services"].values() if "command" in one]
    found += [
        one["spec"]["template"]["spec"]["containers"][0]["args"]
        for name in MANIFESTS
        for one in documents(name)
        if one["kind"] == "Deployment"
    ]
    image = re.search(r"^CMD (\[.*\])$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert image is not None
    return [*found, list(yaml.safe_load(image[1]))]


def test_every_command_line_is_one_of_ours() -> None:
    from typer.testing import CliRunner

    from avyay.cli.app import application

    app = application()
    for command in commands():
        options = {word for word in command if word.startswith("--")}
        assert command[0] == "serve"
        page = CliRunner().invoke(app, ["serve", command[1], "--help"], env={"COLUMNS": "200"}).output
        assert {option for option in options if option not in page} == set(), command


@pytest.mark.parametrize("source", ["compose", "kubernetes"])
def test_the_settings_are_accepted(source: str, tmp_path: Path) -> None:
    text = (DEPLOY / "avyay.yaml").read_text()
    if source == "kubernetes":
        text = documents("avyay.yaml")[0]["data"]["config.yaml"]
    (tmp_path / "avyay.yaml").write_text(text)
    loaded = load_settings(
        directory=tmp_path,
        config_file=tmp_path / "avyay.yaml",
        environment=Environment({"AVYAY_HOME": str(tmp_path / "home")}),
    )
    places = loaded.settings.gateway.upstreams
    assert places.marga.url == "http://marga:8081"
    for name, port in PORTS.items():
        if name != "gateway" and (url := getattr(places, name).url) is not None:
            assert url == f"http://{name}:{port}"


def test_compose_publishes_the_gateway_to_this_host_and_the_collector_to_strangers() -> None:
    services = compose()["services"]
    assert {name: one["ports"] for name, one in services.items() if "ports" in one} == {
        "gateway": ["127.0.0.1:8080:8080"],
        "siddhi": ["8085:8085"],
    }
    assert set(PORTS) | {"collector"} == set(services)
    for name, port in PORTS.items():
        assert services[name]["environment"].get("HEALTH_PORT", "8080") == str(port)
        assert services[name]["read_only"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_pods_run_without_privileges(name: str) -> None:
    for one in documents(name):
        if one["kind"] == "Deployment":
            pod = one["spec"]["template"]["spec"]
            (container,) = pod["containers"]
            assert pod["securityContext"]["runAsNonRoot"]
            assert container["securityContext"]["readOnlyRootFilesystem"]
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["ports"][0]["containerPort"] == PORTS[one["metadata"]["name"]]
            assert {"startupProbe", "livenessProbe", "readinessProbe"} <= set(container)
            assert container["readinessProbe"]["httpGet"]["path"] == "/ready"


@pytest.mark.needs("kubernetes-validate")
@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_fit_the_schemas_of_kubernetes(name: str) -> None:
    done = subprocess.run(
        [shutil.which("kubernetes-validate") or "", "--strict", "-k", "1.34", DEPLOY / "kubernetes" / name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.needs("hadolint")
def test_the_dockerfile_lints_clean() -> None:
    done = subprocess.run(["hadolint", DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")

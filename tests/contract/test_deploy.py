"""The files in ``deploy/`` are valid for Ray and Docker Compose, and match the code."""

import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._private.authentication.authentication_token_setup import AUTH_MODE_ENV_VAR
from ray.serve._private import constants
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as built
from ray.serve.schema import ServeDeploySchema

from samclip_core.io import private_ray
from services.backbone.app import Backbone
from services.heads.segmentation.app import Segmentation
from services.launch import isolation
from services.launch.isolation import BLOCKS
from services.request import calls
from services.request.routes import MODULES, SERVICERS
from services.settings import PREFIX, Settings
from tests.checkout import ROOT
from tests.kubernetes import tool

DEPLOY = ROOT / "deploy"
CONFIG = yaml.safe_load((DEPLOY / "serve_config.yaml").read_text())
ENVIRONMENT = dict(
    line.split("=", 1)
    for line in (DEPLOY / "cluster.env").read_text().splitlines()
    if line and not line.startswith("#")
)


def is_setting(variable: str) -> bool:
    return variable.removeprefix(PREFIX).lower() in Settings.model_fields


def test_ray_takes_the_serve_configuration() -> None:
    ServeDeploySchema.model_validate(CONFIG)
    names = [application["name"] for application in CONFIG["applications"]]
    assert names == calls.applications(Settings())
    assert CONFIG["grpc_options"]["grpc_servicer_functions"] == SERVICERS


@pytest.mark.parametrize("application", CONFIG["applications"], ids=lambda a: a["name"])
def test_each_application_is_built_as_serve_builds_it(application: dict[str, Any]) -> None:
    module, name = application["import_path"].split(":")
    assert module == MODULES[application["name"]]
    builder = getattr(importlib.import_module(module), name)
    app = built(builder, application.get("args", {}))._bound_deployment
    (configured,) = application["deployments"]
    assert application["route_prefix"] == f"/{application['name']}"
    assert configured["name"] == app.name == application["name"]
    tunable = {"checkpoint": "edge", **(configured.get("user_config") or {})}
    for service in (Backbone, Segmentation):
        if service.application == app.name:
            Settings().tuned(tunable, ("checkpoint", *service.tunable))
    if app.name != "gateway":
        assert set(tunable) <= set(app.user_config)


def test_replicas_are_added_before_a_full_queue_refuses_requests() -> None:
    """Ray counts the requests in progress in each replica, which include those in its queue."""
    (backbone,) = CONFIG["applications"][0]["deployments"]
    assert backbone["autoscaling_config"]["target_ongoing_requests"] < Settings().max_queue


def test_the_ports_of_a_cluster_agree_and_serve_limits_no_time() -> None:
    """Serve's timeouts follow the wall clock: see tests/faults/test_clock.py."""
    http, grpc = CONFIG["http_options"], CONFIG["grpc_options"]
    assert str(http["port"]) == ENVIRONMENT["SAMCLIP_INNER_HTTP_PORT"]
    assert str(grpc["port"]) == ENVIRONMENT["SAMCLIP_INNER_GRPC_PORT"]
    assert "request_timeout_s" not in http | grpc


@pytest.mark.parametrize("variable", ENVIRONMENT)
def test_a_node_has_the_environment_that_samclip_serve_makes(variable: str, tmp_path: Path) -> None:
    ours = private_ray.ENVIRONMENT | isolation.environment(Settings(), tmp_path, BLOCKS[0])
    if variable in ours:
        assert ENVIRONMENT[variable] == ours[variable]
    else:
        assert is_setting(variable) or hasattr(constants, variable) or variable == AUTH_MODE_ENV_VAR


def composed(*names: str, **variables: str) -> dict[str, Any]:
    files = [word for name in names for word in ("-f", f"docker-compose{name}.yml")]
    command = [tool("docker-compose"), *files, "--profile", "*", "config", "--format", "json"]
    run = subprocess.run(
        command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    return found


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return composed("", ".gpu", ".keys", ".tls")


def test_a_cluster_of_containers_needs_keys_and_has_the_environment_of_nodes() -> None:
    guide = (DEPLOY / "README.md").read_text()
    (text,) = re.findall(r"```text\n(COMPOSE_FILE=docker-compose.cluster.yml\n.*?)```", guide, re.S)
    variables = dict(line.split("=", 1) for line in text.splitlines())
    assert variables.pop("COMPOSE_FILE") == "docker-compose.cluster.yml"
    services = composed(".cluster", **variables)["services"]
    for name, service in services.items():
        assert (service["cap_drop"], service["read_only"]) == (["ALL"], True), name
        assert "ports" not in service, name
        if name != "redis":
            assert service["image"] == variables["SAMCLIP_IMAGE"], name
    for name in ("head", "worker", "front-door"):
        environment = services[name]["environment"]
        assert environment.items() >= ENVIRONMENT.items()
        assert all(is_setting(each) for each in environment if each.startswith("SAMCLIP_"))
    assert services["worker"]["command"] == [f"--address={variables['SAMCLIP_HEAD']}:6380"]
    assert services["front-door"]["environment"]["SAMCLIP_API_KEYS_FILE"] == "/etc/samclip/keys"
    of_store = {name for name in variables if name.startswith("AWS_")}  # a role may give them
    for name in variables.keys() - {"SAMCLIP_IMAGE", "REDIS_PASSWORD"} - of_store:
        with pytest.raises(AssertionError, match=f"{name} is missing a value: set it in .env"):
            composed(".cluster", **(variables | {name: ""}))


def test_the_guide_removes_only_the_nodes_of_an_old_cluster() -> None:
    """``docker compose down`` would also end Redis, which holds the embeddings of the new one."""
    (_, rest) = (DEPLOY / "README.md").read_text().split("### In containers\n")
    section = rest.split("\n### ")[0]
    assert "docker compose rm --stop --force head " in section
    assert "compose down" not in section


def test_compose_takes_its_files_and_every_service_is_confined(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"], name
        assert service["deploy"]["resources"]["limits"]["memory"], name
        assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", ())), name
        if "build" not in service and name != "keys":
            assert re.search(r":v?\d+(\.\d+)+$", service["image"]), name
            assert service["user"] not in ("", "0", "root"), name
            assert service["healthcheck"]["test"], name


@pytest.mark.parametrize("files", [("", ".gpu", ".keys", ".tls"), (".cluster",)], ids=str)
def test_the_log_of_a_container_cannot_fill_the_disk(files: tuple[str, ...]) -> None:
    """Docker's own default keeps everything: a line for each request, for ever."""
    variables = dict.fromkeys(("SAMCLIP_REDIS_URL", "SAMCLIP_INDEX_DIR"), "one")
    variables |= dict.fromkeys(("RAY_AUTH_TOKEN", "SAMCLIP_HEAD", "SAMCLIP_SERVE_HOST"), "one")
    variables["SAMCLIP_FRONT_DOOR_SECRET"] = "one"
    services = composed(*files, **variables)["services"]
    for name in services.keys() - {"keys"}:  # which runs for a moment, and is removed
        logging = services[name]["logging"]
        assert logging["driver"] == "json-file", name
        assert logging["options"].keys() == {"max-size", "max-file"}, name


def test_prometheus_finds_every_folder_that_it_watches(compose: dict[str, Any]) -> None:
    """It logs an error for a folder that is not there."""
    service = compose["services"]["prometheus"]
    folders = {*service["tmpfs"], *(mount["target"] for mount in service["volumes"])}
    jobs = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())["scrape_configs"]
    watched = [name for job in jobs for each in job["file_sd_configs"] for name in each["files"]]
    for name in watched:
        assert str((Path("/etc/prometheus") / name).parent) in folders, name


def test_compose_sets_what_are_settings(compose: dict[str, Any]) -> None:
    environment = compose["services"]["samclip"]["environment"]
    assert environment["SAMCLIP_DEVICE"] == "cuda"
    assert all(is_setting(each) for each in environment if not each.startswith("AWS_"))


def test_collections_are_in_the_bucket_of_the_guide() -> None:
    guide = (DEPLOY / "README.md").read_text()
    (text,) = re.findall(r"```text\n(SAMCLIP_INDEX_DIR=s3://samclip.*?)```", guide, re.S)
    variables = dict(line.split("=", 1) for line in text.splitlines())
    services = composed("", **variables)["services"]
    assert services["samclip"]["environment"].items() >= variables.items()
    assert variables["AWS_ENDPOINT_URL"] == "http://bucket:8333"
    keys = {name: variables[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    assert services["bucket"]["environment"] == keys
    assert "create -name samclip" in guide
    assert services["bucket"]["profiles"] == ["bucket"]
    without = composed("", **dict.fromkeys(variables, ""))["services"]["samclip"]["environment"]
    assert without["SAMCLIP_INDEX_DIR"] == "/var/lib/samclip/index"


@pytest.mark.parametrize(
    ("setting", "source"), [("TLS_CERT_FILE", "tls"), ("API_KEYS_FILE", "keys/service")]
)
def test_files_that_are_replaced_are_mounted_with_their_folder(
    compose: dict[str, Any], setting: str, source: str
) -> None:
    """A mount of the file itself would keep the old content."""
    service = compose["services"]["samclip"]
    file = Path(service["environment"][f"SAMCLIP_{setting}"])
    folders = {mount["target"]: mount for mount in service["volumes"]}
    assert str(file) not in folders
    assert folders[str(file.parent)]["read_only"]
    assert folders[str(file.parent)]["source"] == str(ROOT / source)


def test_only_compose_without_keys_allows_open_access(compose: dict[str, Any]) -> None:
    """It publishes ports to this machine only: see the test above."""
    assert compose["services"]["samclip"]["environment"]["SAMCLIP_ALLOW_OPEN"] == "false"
    assert "ALLOW_OPEN=" not in re.sub("#.*", "", (DEPLOY / "Dockerfile").read_text())
    assert not any("SAMCLIP_ALLOW_OPEN" in text.read_text() for text in DEPLOY.rglob("*.yaml"))
    assert "SAMCLIP_ALLOW_OPEN" not in ENVIRONMENT


def test_the_guide_leaves_no_shell_in_which_compose_needs_no_keys(tmp_path: Path) -> None:
    """A variable of one shell would be gone in the next, and the service open."""
    guide = (DEPLOY / "README.md").read_text()
    lines = re.findall(r"^\$ echo (COMPOSE_FILE=\S+) > \.env$", guide, re.MULTILINE)
    assert len(lines) == 2
    for file in (*ROOT.glob("docker-compose*.yml"), DEPLOY):
        (tmp_path / file.name).symlink_to(file)
    for line in lines:
        (tmp_path / ".env").write_text(line)
        command = [tool("docker-compose"), "config", "--format", "json"]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        environment = json.loads(run.stdout)["services"]["samclip"]["environment"]
        assert environment["SAMCLIP_ALLOW_OPEN"] == "false"
        assert ("SAMCLIP_TLS_CERT_FILE" in environment) == ("tls" in line)


def test_the_container_of_keys_changes_the_folder_that_the_service_reads(
    compose: dict[str, Any],
) -> None:
    (folder,) = compose["services"]["keys"]["volumes"]
    assert folder["source"] == str(ROOT / "keys/service")
    file = Path(compose["services"]["keys"]["environment"]["SAMCLIP_API_KEYS_FILE"])
    assert file.parent == Path(folder["target"])
    guide = (DEPLOY / "README.md").read_text()
    for text in ("docker-compose.keys.yml", "chown 10001 keys/service", "tls/"):
        assert text in guide
    assert re.search(r"^USER 10001$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)


def test_the_linter_of_dockerfiles_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    run = subprocess.run([hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_image_installs_what_make_serve_installs() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    (extras,) = re.findall(r"^ARG EXTRAS=(\w+)$", text, re.MULTILINE)
    assert text.index("browser_decoder.py") < text.index('pip install "$@" ".[$EXTRAS]"')
    assert f"serve: $(VENV)/.{extras} " in (ROOT / "Makefile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"serve", "train"} <= set(project["optional-dependencies"])
    copied = re.findall(r"^COPY (?!--)(.+) \S+$", text, re.MULTILINE)
    for name in " ".join(copied).split():
        assert (ROOT / name).exists(), name
        assert f"!{name}" in (ROOT / ".dockerignore").read_text(), name


def test_the_variables_of_the_image_are_settings_and_its_folders_on_the_volume() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    variables = dict(re.findall(r"(SAMCLIP_[A-Z_]+)=(\S+)", text))
    assert all(map(is_setting, variables))
    (volume,) = re.findall(r"^VOLUME (\S+)$", text, re.MULTILINE)
    for name in ("SAMCLIP_INDEX_DIR", "SAMCLIP_COMPILED_CACHE_DIR"):
        assert Path(variables[name]).parent == Path(volume)

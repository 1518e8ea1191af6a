"""The files in ``deploy/`` are valid for Ray, Kubernetes and Docker Compose, and match the code."""

import importlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from ray._private.authentication.authentication_token_setup import AUTH_MODE_ENV_VAR
from ray.serve._private import constants
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as built
from ray.serve.schema import ServeDeploySchema

from services.backbone.app import Backbone
from services.deployment import replica
from services.heads.segmentation.app import Segmentation
from services.launch import isolation
from services.launch.ports import BLOCKS
from services.request import admission
from services.request.routes import MODULES, SERVICERS
from services.settings import PREFIX, Settings
from tests.checkout import ROOT
from training.recipes import vit_b

DEPLOY = ROOT / "deploy"
CONFIG = yaml.safe_load((DEPLOY / "serve_config.yaml").read_text())
ENVIRONMENT = dict(
    line.split("=", 1)
    for line in (DEPLOY / "cluster.env").read_text().splitlines()
    if line and not line.startswith("#")
)
OVERLAYS = ("kuberay/overlays/cpu", "kuberay/overlays/gpu", "kuberay/training")
KUBERNETES = kubernetes_validate.latest_version()


def is_setting(variable: str) -> bool:
    return variable.removeprefix(PREFIX).lower() in Settings.model_fields


def test_ray_takes_the_serve_configuration() -> None:
    ServeDeploySchema.model_validate(CONFIG)
    names = [application["name"] for application in CONFIG["applications"]]
    assert names == admission.applications(Settings())
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
        assert configured["max_ongoing_requests"] == app.max_ongoing_requests
        assert configured["max_queued_requests"] == replica.MAX_QUEUED
        assert set(tunable) <= set(app.user_config)


def test_the_ports_of_a_cluster_agree() -> None:
    http, grpc = CONFIG["http_options"], CONFIG["grpc_options"]
    assert str(http["port"]) == ENVIRONMENT["SAMCLIP_INNER_HTTP_PORT"]
    assert str(grpc["port"]) == ENVIRONMENT["SAMCLIP_INNER_GRPC_PORT"]


def test_serve_limits_no_time() -> None:
    """Serve's timeouts follow the wall clock: see tests/faults/test_clock.py."""
    assert "request_timeout_s" not in CONFIG["http_options"] | CONFIG["grpc_options"]


@pytest.mark.parametrize("variable", ENVIRONMENT)
def test_a_node_has_the_environment_that_samclip_serve_makes(variable: str, tmp_path: Path) -> None:
    ours = isolation.environment(Settings(), tmp_path, BLOCKS[0])
    if variable in ours:
        assert ENVIRONMENT[variable] == ours[variable]
    else:
        assert is_setting(variable) or hasattr(constants, variable) or variable == AUTH_MODE_ENV_VAR


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: install Debian's package {name}")
    return found


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    names = ("", ".gpu", ".keys")
    files = [word for name in names for word in ("-f", f"docker-compose{name}.yml")]
    command = [tool("docker-compose"), *files, "--profile", "train", "config", "--format", "json"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def test_compose_takes_its_files_and_every_service_is_confined(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"], name
        assert service["deploy"]["resources"]["limits"]["memory"], name
        assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", ())), name
        if "build" not in service:
            assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), name
            assert service["user"] not in ("", "0", "root"), name
            assert service["healthcheck"]["test"], name


def test_compose_sets_what_are_settings(compose: dict[str, Any]) -> None:
    environment = compose["services"]["samclip"]["environment"]
    assert environment["SAMCLIP_DEVICE"] == "cuda"
    assert all(map(is_setting, environment))


def test_keys_are_mounted_with_their_folder(compose: dict[str, Any]) -> None:
    """``samclip keys`` replaces the file, and a mount of the file would keep the old content."""
    service = compose["services"]["samclip"]
    file = Path(service["environment"]["SAMCLIP_API_KEYS_FILE"])
    folders = {mount["target"]: mount for mount in service["volumes"]}
    assert str(file) not in folders
    assert folders[str(file.parent)]["read_only"]
    assert folders[str(file.parent)]["source"] == str(ROOT / "keys")
    guide = (DEPLOY / "README.md").read_text()
    assert "docker-compose.keys.yml" in guide
    assert "chown 10001 keys" in guide
    assert re.search(r"^USER 10001$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)


def test_the_linter_of_dockerfiles_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    run = subprocess.run([hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_image_installs_what_make_serve_installs() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    (extras,) = re.findall(r"^ARG EXTRAS=(\w+)$", text, re.MULTILINE)
    assert f"pip install '.[{extras}]'" in text.replace("$EXTRAS", extras).replace('"', "'")
    assert f"--editable '.[{extras}]'" in (ROOT / "Makefile").read_text()
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


@pytest.fixture(scope="module", params=OVERLAYS)
def manifests(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    command = [tool("kustomize"), "build", DEPLOY / request.param]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return list(yaml.safe_load_all(run.stdout))


def templates(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the pod templates in a manifest, at any depth."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for name, part in value.items():
            if name == "template" and "containers" in part.get("spec", ()):
                yield part
            else:
                yield from templates(part)


def test_kubernetes_takes_the_manifests(manifests: list[dict[str, Any]]) -> None:
    for manifest in manifests:
        if "k8s.io" in manifest["apiVersion"] or manifest["apiVersion"] in (
            "v1",
            "apps/v1",
            "autoscaling/v2",
            "policy/v1",
        ):
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
        for template in templates(manifest):
            metadata = {"name": "x", **template.get("metadata", {})}
            pod = {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": metadata,
                "spec": template["spec"],
            }
            kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_pods_are_confined_and_have_no_variables_but_settings(
    manifests: list[dict[str, Any]],
) -> None:
    pods = [template["spec"] for manifest in manifests for template in templates(manifest)]
    assert pods
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"]
        for container in pod["containers"]:
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
            assert re.search(r":[\w.-]+$", container["image"])
            names = [variable["name"] for variable in container.get("env", ())]
            assert all(is_setting(name) for name in names if name.startswith(PREFIX))


def test_the_sets_of_the_recipe_are_indexed_where_the_training_job_looks() -> None:
    index, training = (
        yaml.safe_load((DEPLOY / f"kuberay/training/{name}.yaml").read_text())
        for name in ("index", "rayjob")
    )
    kubernetes_validate.validate(index, KUBERNETES, strict=True)
    pods = [template["spec"] for manifest in (index, training) for template in templates(manifest)]
    for key in ("volumes", "securityContext"):
        assert all(pod[key] == pods[0][key] for pod in pods)
    containers = [container for pod in pods for container in pod["containers"]]
    for key in ("env", "image", "securityContext", "volumeMounts"):
        assert all(container[key] == containers[0][key] for container in containers)
    recipe = vit_b()
    sets = (*recipe.photo_sets, *recipe.region_sets)
    assert containers[0]["args"] == [f"/data/photographs/{name}" for name, _ in sets]


def test_the_ray_service_has_the_serve_configuration(manifests: list[dict[str, Any]]) -> None:
    for service in (each for each in manifests if each["kind"] == "RayService"):
        assert yaml.safe_load(service["spec"]["serveConfigV2"]) == CONFIG
        cluster = service["spec"]["rayClusterConfig"]
        (data,) = (m["data"] for m in manifests if m["kind"] == "ConfigMap")
        assert data.items() >= {**ENVIRONMENT, "SAMCLIP_DTYPE": data["SAMCLIP_DTYPE"]}.items()
        groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        for group in groups:
            (container,) = group["template"]["spec"]["containers"]
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            assert str(ports["serve"]) == ENVIRONMENT["SAMCLIP_INNER_HTTP_PORT"]
            assert str(ports["grpc"]) == ENVIRONMENT["SAMCLIP_INNER_GRPC_PORT"]
            assert {"configMapRef": {"name": "samclip-cluster"}} in container["envFrom"]


def test_all_replicas_compute_in_one_precision(manifests: list[dict[str, Any]]) -> None:
    """All CPUs support float32, and all GPUs bfloat16."""
    for data in (each["data"] for each in manifests if each["kind"] == "ConfigMap"):
        on_gpus = data.get("SAMCLIP_DEVICE") == "cuda"
        assert data["SAMCLIP_DTYPE"] == ("bfloat16" if on_gpus else "float32")
    assert not any("dtype" in app.get("args", ()) for app in CONFIG["applications"])


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    return selector["matchLabels"].items() <= labels.items()


def test_only_the_front_door_reaches_the_inner_ports_from_elsewhere(
    manifests: list[dict[str, Any]],
) -> None:
    door = {"app.kubernetes.io/name": "samclip-front-door"}
    inner = {int(ENVIRONMENT[f"SAMCLIP_INNER_{name}_PORT"]) for name in ("HTTP", "GRPC")}
    for service in (each for each in manifests if each["kind"] == "RayService"):
        (policy,) = (each["spec"] for each in manifests if each["kind"] == "NetworkPolicy")
        cluster = service["spec"]["rayClusterConfig"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            assert selects(policy["podSelector"], group["template"]["metadata"]["labels"])
        assert policy["policyTypes"] == ["Ingress"]
        for rule in policy["ingress"]:
            (peer,) = rule["from"]
            ports = {port["port"] for port in rule.get("ports", ())}
            if not ports:  # a rule without ports allows all
                assert peer == {"podSelector": policy["podSelector"]}
            elif selects(peer["podSelector"], door):
                assert ports == inner
            else:
                assert not ports >= inner


def test_secrets_are_named_where_they_are_explained(manifests: list[dict[str, Any]]) -> None:
    text = (DEPLOY / "README.md").read_text()
    keys = re.findall(
        r'"secretKeyRef": {"key": "([\w-]+)", "name": "samclip"}', json.dumps(manifests)
    )
    for key in keys:
        assert f"--from-literal={key}=" in text

"""The Helm chart renders the same objects as the overlays of kustomize."""

import subprocess

import pytest
import yaml

from tests import helm
from tests.kubernetes import DEPLOY, Manifest, built, of_kind, spec, templates, validate

CHART = DEPLOY / "helm/samclip"
IMAGE = "registry.example.com/samclip:0.1.0"


def rendered(*settings: str, namespace: str = "samclip") -> list[Manifest]:
    """Render the chart with values like ``gpu=true``."""
    sets = [word for setting in settings for word in ("--set", setting)]
    command = [helm.binary(), "template", "samclip", CHART, "--namespace", namespace, *sets]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return [manifest for manifest in yaml.safe_load_all(run.stdout) if manifest]


def named(manifests: list[Manifest]) -> dict[tuple[str, str], Manifest]:
    """Return manifests by kind and name, without the namespace, which Helm does not render."""
    found = {(m["kind"], m["metadata"]["name"]): m for m in manifests}
    return {key: manifest for key, manifest in found.items() if key[0] != "Namespace"}


@pytest.mark.parametrize(
    ("overlay", "settings"),
    [
        ("cpu", ()),
        ("gpu", ("gpu=true", f"image={IMAGE}-cuda")),
        ("public", ("ingress.enabled=true",)),
    ],
)
def test_it_renders_the_objects_of_an_overlay(overlay: str, settings: tuple[str, ...]) -> None:
    assert named(rendered(*settings)) == named(built(f"overlays/{overlay}"))


def test_without_monitoring_nothing_needs_the_prometheus_operator() -> None:
    manifests = rendered("monitoring=false")
    assert not any("monitoring.coreos.com" in each["apiVersion"] for each in manifests)
    assert [*of_kind(manifests, "ConfigMap")] == ["samclip-cluster"]


def test_each_value_arrives_where_it_belongs() -> None:
    values = {
        **{"image": "r/i:1", "checkpoint": "/checkpoints/mine"},
        **{"environment.SAMCLIP_LOG_LEVEL": "INFO", "documents": "https://here"},
        **{"frontDoor.min": "3", "frontDoor.max": "4", "workers.min": "5", "workers.max": "7"},
        **{"workers.cpu": "9", "workers.memory": "11Gi", "redis.image": "r/redis:8"},
        **{"redis.memory": "12Gi", "redis.maxmemory": "9gb", "redis.storage": "30Gi"},
        **{
            "ingress.enabled": "true",
            "ingress.className": "other",
            "ingress.clusterIssuer": "ours",
        },
        **{"ingress.httpHost": "h.example", "ingress.grpcHost": "g.example"},
    }
    manifests = rendered(*map("=".join, values.items()), namespace="elsewhere")
    for manifest in manifests:
        validate(manifest)
        assert manifest["metadata"]["namespace"] == "elsewhere"
    pods = [template["spec"] for manifest in manifests for template in templates(manifest)]
    images = {container["image"] for pod in pods for container in pod["containers"]}
    assert images == {"r/i:1", "r/redis:8"}
    text = yaml.safe_dump_all(manifests, width=10_000)
    changed = {value for value in values.values() if len(value) > 1 and value != "true"}
    assert {value for value in changed if value not in text} == set()
    doors = spec(manifests, "HorizontalPodAutoscaler", "samclip-front-door")
    assert (doors["minReplicas"], doors["maxReplicas"]) == (3, 4)
    pod = spec(manifests, "StatefulSet", "samclip-front-door")["template"]["spec"]
    (container,) = pod["containers"]
    names = {each["name"]: each.get("value", "") for each in container["env"]}
    assert names["SAMCLIP_FRONT_DOORS"].count("samclip-front-door-") == 4
    (workers,) = spec(manifests, "RayService", "samclip")["rayClusterConfig"]["workerGroupSpecs"]
    assert (workers["minReplicas"], workers["maxReplicas"]) == (5, 7)
    config = yaml.safe_load(spec(manifests, "RayService", "samclip")["serveConfigV2"])
    (backbone,) = config["applications"][0]["deployments"]
    assert backbone["user_config"]["checkpoint"] == "/checkpoints/mine"


def test_every_value_is_documented_and_used() -> None:
    text = (CHART / "values.yaml").read_text()
    used = "".join(file.read_text() for file in (CHART / "templates").iterdir())
    guide = (DEPLOY / "README.md").read_text()
    for name, value in yaml.safe_load(text).items():
        assert f"`{name}`" in guide, name
        for part in value if isinstance(value, dict) and value else [""]:
            assert ".".join((f".Values.{name}", *([part] if part else []))) in used, (name, part)

"""A batch beside the service on Kubernetes, as deploy/README.md shows it."""

import re
import tomllib
from typing import Any

import yaml

from services.lake.batch import parser
from tests import documents
from tests.checkout import ROOT
from tests.kubernetes import DEPLOY, built, spec

README = DEPLOY / "README.md"
(SUBMITTED,) = (words for words in documents.shown(README) if "batch" in words)
GUIDE = README.read_text().split("### A batch beside the service\n")[1].split("\n### ")[0]


def reserved(applications: list[dict[str, Any]]) -> float:
    """Return the cores that Ray reserves for the fewest replicas of each application."""
    total = 0.0
    for application in applications:
        (deployment,) = application["deployments"]
        scale = deployment.get("autoscaling_config", {})
        replicas = scale.get("min_replicas", deployment.get("num_replicas"))
        total += replicas * application.get("args", {}).get("replica_cpus", 0)
    return total


def test_the_batch_of_the_guide_leaves_the_service_room_for_another_backbone() -> None:
    service = spec(built("overlays/cpu"), "RayService", "samclip")
    (workers,) = service["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = workers["template"]["spec"]["containers"]
    cores = workers["minReplicas"] * int(container["resources"]["requests"]["cpu"])
    applications = yaml.safe_load(service["serveConfigV2"])["applications"]
    backbone = next(each for each in applications if each["name"] == "backbone")
    batch = parser().parse_args(SUBMITTED[SUBMITTED.index("batch") + 1 :])
    budget = batch.workers * batch.cpus_per_worker
    left = cores - reserved(applications) - budget
    assert batch.workers > 0
    assert left >= backbone["args"]["replica_cpus"]
    figures = map(int, re.findall(r"reserve (\d+) of the (\d+) cores", GUIDE)[0])
    assert [*figures] == [reserved(applications), cores]
    assert f"takes {budget} of the others, and leaves\n{left:g} " in GUIDE


def test_the_image_of_the_guide_has_what_a_batch_needs() -> None:
    (extras,) = re.findall(r"EXTRAS=([\w,]+)", GUIDE)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {*extras.split(",")} <= known.keys()
    assert any(package.startswith("ray[data]") for package in known["lake"])
    assert "lake" in extras.split(",")

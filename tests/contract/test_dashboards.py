"""The dashboards of Grafana: their variables, states and thresholds, and metrics that exist."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import ray
from prometheus_client import REGISTRY

from services.observability import metrics
from tests.checkout import ROOT
from tests.kubernetes import DEPLOY
from tests.prometheus_server import required

FILES = sorted((DEPLOY / "grafana").glob("*/*.json"))
RAY = Path(ray.__file__).parent
THROUGH_RAY = {
    "samclip_training": "training/workers.py",
    "samclip_batch_images_total": "services/lake/worker.py",
}


def panels(file: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(file.read_text())["panels"]
    return found


def queries(file: Path) -> list[str]:
    return [target["expr"] for panel in panels(file) for target in panel["targets"]]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_dashboard_can_be_narrowed_to_a_source_a_namespace_and_a_node(file: Path) -> None:
    variables = {each["name"]: each for each in json.loads(file.read_text())["templating"]["list"]}
    per_node = file.parent.name == "dashboards"  # Ray's own dashboards show each node
    assert [*variables] == ["source", "namespace", *(["node"] if per_node else [])]
    for name, variable in variables.items():
        # ".*" also selects series without the label, which only a cluster has.
        assert name == "source" or (variable["includeAll"] and variable["allValue"] == ".*")
    for panel in panels(file):
        assert panel["datasource"]["uid"] == "${source}"
    for query in queries(file):
        for name, selector in re.findall(r"\b((?:samclip|haproxy|ray)_\w+)(\{[^}]*\})", query):
            assert 'namespace=~"$namespace"' in selector
            shared = name in ("samclip_ready", "haproxy_frontend_http_responses_total")
            assert ('node=~"$node"' in selector) == (per_node and not shared), query


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_queries_are_valid_and_name_metrics_that_exist(file: Path, tmp_path: Path) -> None:
    assert metrics.REDIS_BYTES  # the import registers all of them
    ours = {name for metric in REGISTRY.collect() for name in names_of(metric.name, metric.type)}
    of_ray = "".join(
        (RAY / name).read_text()
        for name in (
            *("serve/_private/deployment_state.py", "serve/_private/replica.py"),
            "dashboard/modules/reporter/reporter_agent.py",
        )
    )
    plain = [query.replace("$__rate_interval", "1m") for query in queries(file)]
    rules = [{"record": f"query_{number}", "expr": query} for number, query in enumerate(plain)]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "all", "rules": rules}]}))
    command = [required("promtool"), "check", "rules", tmp_path / "rules.yml"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for query in queries(file):
        for name in re.findall(r"\bsamclip_\w+", query):
            assert name in ours | {"samclip_ready"}, name
        for name in re.findall(r"\bray_(\w+)\{", query):
            ours_by = THROUGH_RAY.get(name)
            known = (ROOT / ours_by).read_text() if ours_by else of_ray
            assert f'"{name}"' in known, name


def names_of(name: str, kind: str) -> list[str]:
    """Return the names of the series of a metric, which may have none yet."""
    endings = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",)}
    return [name + ending for ending in endings.get(kind, ("",))]


def test_limits_are_drawn_where_there_are_any() -> None:
    drawn = {
        panel["title"]: [step["value"] for step in defaults["thresholds"]["steps"][1:]]
        for file in FILES
        for panel in panels(file)
        if "thresholds" in (defaults := panel["fieldConfig"]["defaults"])
    }
    rules = (DEPLOY / "prometheus/rules.yml").read_text()
    for title, alert in (("Error ratio", "SamclipErrors"), ("Latency", "SamclipSlow")):
        (limit,) = re.findall(rf"alert: {alert}\b.*\n.* > ([\d.]+)$", rules, re.MULTILINE)
        assert drawn[title][-1] == float(limit)
    assert {"Queue length", "Batch wait", "Redis memory", "CPU", "Memory"} <= drawn.keys()


def test_compose_shows_only_dashboards_that_it_can_fill() -> None:
    """Its Prometheus scrapes no Ray."""
    compose = (DEPLOY.parent / "docker-compose.yml").read_text()
    assert "./deploy/grafana/dashboards:" in compose
    for file in FILES:
        assert any("ray_" in query for query in queries(file)) == (file.parent.name == "cluster")

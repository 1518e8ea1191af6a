"""Rules, alerts and runbook are consistent, and pass promtool's checks."""

import re
import subprocess

import pytest
import yaml

from services.gateway import scrape
from services.observability import metrics
from tests.checkout import ROOT
from tests.prometheus_server import CONFIGURATION, required

RULES = [
    rule
    for group in yaml.safe_load((CONFIGURATION / "rules.yml").read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RUNBOOK = (ROOT / "deploy/RUNBOOK.md").read_text()


@pytest.mark.parametrize(
    "words", ["check config prometheus.yml", "check rules rules.yml", "test rules rules_test.yml"]
)
def test_promtool(words: str) -> None:
    command = [required("promtool"), *words.split()]
    run = subprocess.run(command, cwd=CONFIGURATION, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_metrics_are_well_named_and_well_formed() -> None:
    with metrics.stage("hash"):
        pass
    command = [required("promtool"), "check", "metrics"]
    run = subprocess.run(command, input=scrape.render({"": scrape.of_node()}), capture_output=True)
    assert (run.returncode, run.stdout + run.stderr) == (0, b"")


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_has_its_section_and_fires_in_a_test(name: str) -> None:
    link = ALERTS[name]["annotations"]["runbook_url"]
    assert link == f"deploy/RUNBOOK.md#{name.lower()}"
    section = re.search(rf"### {name}\n(.*?)(?=\n##|\Z)", RUNBOOK, re.DOTALL)
    assert section
    assert re.findall(r"^\*\*(\w+)\*\*", section[1], re.MULTILINE) == ["Means", "Look", "Do"]
    tests = (CONFIGURATION / "rules_test.yml").read_text()
    assert f'alertname="{name}"' in tests


def test_the_runbook_is_of_these_alerts_only() -> None:
    assert set(re.findall(r"^### (\w+)", RUNBOOK, re.MULTILINE)) == set(ALERTS)

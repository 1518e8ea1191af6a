"""Rules, alerts and runbook are consistent, and pass promtool's checks."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from services.gateway import scrape
from services.observability import metrics
from tests import alertmanager_server, prometheus_server
from tests.checkout import ROOT
from tests.ports import free_port
from tests.prometheus_server import CONFIGURATION, required

RULES = [
    rule
    for name in prometheus_server.RULES
    for group in yaml.safe_load((CONFIGURATION / name).read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
PLACE = "https://git.example.com/samclip/blob/main"  # to be replaced, like the image's registry
RUNBOOK = (ROOT / "deploy/RUNBOOK.md").read_text()


@pytest.mark.parametrize(
    "words",
    [
        "check config prometheus.yml",
        "check rules rules.yml slo.yml",
        "test rules rules_test.yml slo_test.yml slo_days_test.yml",
    ],
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
    assert link == f"{PLACE}/deploy/RUNBOOK.md#{name.lower()}"
    section = re.search(rf"### {name}\n(.*?)(?=\n##|\Z)", RUNBOOK, re.DOTALL)
    assert section
    assert re.findall(r"^\*\*(\w+)\*\*", section[1], re.MULTILINE) == ["Means", "Look", "Do"]
    tests = "".join(file.read_text() for file in CONFIGURATION.glob("*_test.yml"))
    assert re.search(f'alertname(="|: ){name}\\b', tests)


def test_the_runbook_has_no_alert_that_is_gone() -> None:
    assert set(re.findall(r"^### (Samclip\w+)", RUNBOOK, re.MULTILINE)) == set(ALERTS)


@pytest.mark.parametrize(
    "name",
    [
        "A dead head",
        "Loss of the GCS Redis",
        "A full disk",
        "An expired certificate",
        "A leaked key",
    ],
)
def test_an_emergency_has_commands_for_both_and_says_where_the_logs_are(name: str) -> None:
    section = re.search(rf"### {name}\n(.*?)(?=\n##|\Z)", RUNBOOK, re.DOTALL)
    assert section
    for command in (r"^\$ docker compose ", r"^\$ kubectl --namespace samclip ", r"^\$ .* logs "):
        assert re.search(command, section[1], re.MULTILINE), command


def test_a_stopped_service_is_told_to_the_receiver_and_nothing_else_is(tmp_path: Path) -> None:
    stopped = f"127.0.0.1:{free_port()}"
    with (
        alertmanager_server.receiver() as (url, messages),
        alertmanager_server.running(tmp_path, url) as address,
        prometheus_server.running(tmp_path, stopped, alertmanager=address),
    ):
        message = messages.get(timeout=120)
    assert (message["receiver"], message["status"]) == ("team", "firing")
    (alert,) = message["alerts"]
    assert alert["labels"]["alertname"] == "SamclipDown"
    assert alert["labels"]["instance"] == stopped
    assert alert["annotations"]["runbook_url"] == f"{PLACE}/deploy/RUNBOOK.md#samclipdown"

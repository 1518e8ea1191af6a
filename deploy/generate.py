"""Write the manifests that follow from other files: `make manifests`."""

import re
from pathlib import Path
from textwrap import indent

from deploy import chart
from services.request.routes import MODULES, SERVICERS

DEPLOY = Path(__file__).parent
RULE_FILE = DEPLOY / "kuberay/base/prometheus-rule.yaml"
RULE = """\
# Made by `make manifests` from rules.yml and slo.yml of deploy/prometheus.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: samclip
spec:
  groups:
"""
SERVE_FILE = DEPLOY / "kuberay/base/serve_config.yaml"
APPLICATION = """\
  - name: {name}
    route_prefix: /{name}
    import_path: {module}:build
    args: {{ replica_cpus: 1, threads: 1 }}
    deployments:
      - name: {name}
        user_config: *model
        max_surge_percent: 100
        autoscaling_config: *scale
"""
"""A new application in Serve's configuration, where its numbers may then be changed."""


def serve_config() -> str:
    """Return Serve's configuration with the servicers and the applications of the route table."""
    head, *blocks = re.split("(?m)^(?=  - name: )", SERVE_FILE.read_text())
    servicers = "".join(f"    - {one}\n" for one in SERVICERS)
    head = re.sub("(?m)^    - .*\n(    - .*\n)*", servicers, head)
    present = {block.split()[2]: block.strip("\n") + "\n" for block in blocks}
    return head + "\n".join(
        present.get(name, APPLICATION.format(name=name, module=module))
        for name, module in MODULES.items()
    )


def prometheus_rule() -> str:
    """Return the rules of Prometheus as an object of the Prometheus operator, in YAML."""
    texts = [(DEPLOY / f"prometheus/{name}.yml").read_text() for name in ("rules", "slo")]
    return RULE + "".join(indent(text.partition("\ngroups:\n")[2], "  ") for text in texts)


def chart_files() -> dict[Path, str]:
    """Return the content of each file of the chart that is made from the overlays."""
    folder = DEPLOY / "helm/samclip/templates"
    return {folder / name: text for name, text in chart.templates().items()}


if __name__ == "__main__":
    RULE_FILE.write_text(prometheus_rule())  # the chart contains it, and Serve's configuration
    SERVE_FILE.write_text(serve_config())
    for file, text in chart_files().items():
        file.write_text(text)

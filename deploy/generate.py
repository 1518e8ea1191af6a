"""Write the manifests that follow from other files: `make manifests`."""

from pathlib import Path
from textwrap import indent

from deploy import chart

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


def prometheus_rule() -> str:
    """Return the rules of Prometheus as an object of the Prometheus operator, in YAML."""
    texts = [(DEPLOY / f"prometheus/{name}.yml").read_text() for name in ("rules", "slo")]
    return RULE + "".join(indent(text.partition("\ngroups:\n")[2], "  ") for text in texts)


def chart_files() -> dict[Path, str]:
    """Return the content of each file of the chart that is made from the overlays."""
    folder = DEPLOY / "helm/samclip/templates"
    return {folder / name: text for name, text in chart.templates().items()}


if __name__ == "__main__":
    RULE_FILE.write_text(prometheus_rule())  # the chart contains it
    for file, text in chart_files().items():
        file.write_text(text)

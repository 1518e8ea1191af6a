"""The templates of the Helm chart, made from the overlays of kustomize, so that both agree."""

import re
import subprocess
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import yaml

OVERLAYS = Path(__file__).parent / "kuberay/overlays"
MONITORING = ("PodMonitor", "ScrapeConfig", "PrometheusRule")
CLUSTER = "ConfigMap samclip-cluster"
HEADER = "{{- /* Made by `make manifests` from deploy/kuberay. */ -}}\n"
DOORS = (
    "{{ range $i, $_ := until (int .Values.frontDoor.max) }}{{ if $i }}, {{ end }}"
    "samclip-front-door-{{ $i }}.samclip-front-doors.$(NAMESPACE).svc.cluster.local{{ end }}"
)
DATA = r"""data:
{{- $ours := fromYaml `
\1` }}
{{ merge (deepCopy .Values.environment) $ours | toYaml | indent 2 }}
"""
WORKERS = "spec.rayClusterConfig.workerGroupSpecs.0"
NAMESPACE = "namespaceSelector.matchLabels.kubernetes~io/metadata~name"
CONTAINER = "spec.template.spec.containers.0"
VALUES = {
    "HorizontalPodAutoscaler samclip-front-door": {
        "spec.minReplicas": ".frontDoor.min",
        "spec.maxReplicas": ".frontDoor.max",
    },
    "RayService samclip": {
        f"{WORKERS}.replicas": ".workers.min",
        f"{WORKERS}.minReplicas": ".workers.min",
        f"{WORKERS}.maxReplicas": ".workers.max",
        f"{WORKERS}.template.spec.containers.0.resources.requests.cpu": ".workers.cpu | quote",
        f"{WORKERS}.template.spec.containers.0.resources.requests.memory": ".workers.memory",
        f"{WORKERS}.template.spec.containers.0.resources.limits.memory": ".workers.memory",
    },
    "NetworkPolicy samclip-nodes": {
        f"spec.ingress.2.from.0.{NAMESPACE}": ".namespaces.operator | quote",
        f"spec.ingress.3.from.0.{NAMESPACE}": ".namespaces.prometheus | quote",
    },
    "StatefulSet samclip-redis": {
        f"{CONTAINER}.args.4": ".redis.maxmemory",
        f"{CONTAINER}.resources.requests.memory": ".redis.memory",
        f"{CONTAINER}.resources.limits.memory": ".redis.memory",
        "spec.volumeClaimTemplates.0.spec.resources.requests.storage": ".redis.storage",
    },
    "Ingress samclip-http": {
        "spec.ingressClassName": ".ingress.className",
        "spec.rules.0.host": ".ingress.httpHost",
        "spec.tls.0.hosts.0": ".ingress.httpHost",
        "spec.tls.0.hosts.1": ".ingress.grpcHost",
        "metadata.annotations.cert-manager~io/cluster-issuer": ".ingress.clusterIssuer",
    },
    "Ingress samclip-grpc": {
        "spec.ingressClassName": ".ingress.className",
        "spec.rules.0.host": ".ingress.grpcHost",
        "spec.tls.0.hosts.0": ".ingress.httpHost",
        "spec.tls.0.hosts.1": ".ingress.grpcHost",
        "metadata.annotations.cert-manager~io/cluster-issuer": ".ingress.clusterIssuer",
    },
}
"""The value of each field that varies; a dot in a name is written as ~."""

Manifest = dict[str, Any]


def templates() -> dict[str, str]:
    """Return the text of each template by its file name."""
    cpu, gpu, public = (_built(name) for name in ("cpu", "gpu", "public"))
    texts: dict[str, str] = {}
    for name, manifest in public.items():
        if manifest["kind"] == "Namespace":  # `helm install --create-namespace` makes it
            continue
        text = _template(manifest)
        other = _template(gpu.get(name, manifest))
        if name not in cpu:
            text = _if(".Values.ingress.enabled", text)
        elif name == CLUSTER:  # its data is one literal of the template
            text = _if(".Values.gpu", other, text)
        elif other != text:
            text = _either(".Values.gpu", other, text)
        elif manifest["kind"] in MONITORING or name.endswith("-dashboards"):
            text = _if(".Values.monitoring", text)
        texts[name.lower().replace(" ", "-") + ".yaml"] = HEADER + text
    return texts


def _built(overlay: str) -> dict[str, Manifest]:
    command = ["kustomize", "build", OVERLAYS / overlay]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {f"{m['kind']} {m['metadata']['name']}": m for m in yaml.safe_load_all(text)}


def _if(condition: str, text: str, otherwise: str = "") -> str:
    alternative = f"{{{{- else }}}}\n{otherwise}" if otherwise else ""
    return f"{{{{- if {condition} }}}}\n{text}{alternative}{{{{- end }}}}\n"


def _either(condition: str, text: str, otherwise: str) -> str:
    """Return the lines that both texts have, with a condition around those that only one has."""
    ours, theirs = text.splitlines(keepends=True), otherwise.splitlines(keepends=True)
    merged = ""
    for kind, start, end, from_, to in SequenceMatcher(None, ours, theirs, False).get_opcodes():
        lines = "".join(ours[start:end])
        merged += lines if kind == "equal" else _if(condition, lines, "".join(theirs[from_:to]))
    return merged


def _template(manifest: Manifest) -> str:
    """Return a manifest as a template: fields that vary are values, and braces are escaped."""
    name = f"{manifest['kind']} {manifest['metadata']['name']}"
    manifest = yaml.safe_load(yaml.safe_dump(manifest))  # a copy
    for path, value in VALUES.get(name, {}).items():
        _put(manifest, path, f"<<.Values{value}>>")
    manifest["metadata"]["namespace"] = "<<.Release.Namespace>>"
    text = yaml.safe_dump(manifest, width=10_000, sort_keys=False, allow_unicode=True)
    text = text.replace("{{", '{{ "{{" }}')
    text = re.sub(r"'?<<(.*?)>>'?", r"{{ \1 }}", text)
    text = re.sub(r"registry\.example\.com/samclip:\S+", "{{ .Values.image }}", text)
    text = re.sub(r"redis:8\.\d+\.\d+", "{{ .Values.redis.image }}", text)
    text = text.replace("checkpoint: edge", "checkpoint: {{ .Values.checkpoint }}")
    text = text.replace("https://git.example.com/samclip/blob/main", "{{ .Values.documents }}")
    text = re.sub(r"(samclip-front-door-\d.*?local,? ?)+", DOORS, text)
    if name == CLUSTER:
        text = re.sub(r"^data:\n((?:  .*\n)*)", DATA, text, flags=re.MULTILINE)
    return text


def _put(manifest: Any, path: str, value: str) -> None:
    *way, last = path.split(".")
    for step in way:
        manifest = manifest[int(step)] if step.isdigit() else manifest[step.replace("~", ".")]
    key: Any = int(last) if last.isdigit() else last.replace("~", ".")
    assert isinstance(manifest, list) or key in manifest, path
    manifest[key] = value

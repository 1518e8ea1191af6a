"""Rendered manifests, and their validation against the schemas of Kubernetes and the operators."""

import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.checkout import ROOT

Manifest = dict[str, Any]
DEPLOY = ROOT / "deploy"
DEFINITIONS = ROOT / "../shared/data/crds"
VERSION = kubernetes_validate.latest_version()
CUSTOM = ("ray.io/", "monitoring.coreos.com/")


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: install Debian's package {name}")
    return found


@cache
def built(folder: str) -> list[Manifest]:
    """Return the objects of an overlay below ``deploy/kuberay``."""
    command = [tool("kustomize"), "build", DEPLOY / "kuberay" / folder]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return list(yaml.load_all(run.stdout, yaml.CSafeLoader))


def of_kind(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    """Return the manifests of a kind by name."""
    return {each["metadata"]["name"]: each for each in manifests if each["kind"] == kind}


def spec(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    """Return the specification of a manifest."""
    found: Manifest = of_kind(manifests, kind)[name]["spec"]
    return found


def templates(value: Any) -> Iterator[Manifest]:
    """Yield the pod templates in a manifest, at any depth."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for name, part in value.items():
            if str(name).lower().endswith("template") and "containers" in part.get("spec", ()):
                yield part
            else:
                yield from templates(part)


def validate(manifest: Manifest) -> None:
    """Check a manifest, and the pods in it, against their schemas; unknown fields are errors."""
    _validate(yaml.dump(manifest, Dumper=yaml.CSafeDumper))


@cache  # overlays have most manifests in common, and a check takes a tenth of a second
def _validate(text: str) -> None:
    manifest = yaml.load(text, yaml.CSafeLoader)
    if manifest["apiVersion"].startswith(CUSTOM):
        jsonschema.validate(manifest, schema(manifest["apiVersion"], manifest["kind"]))
    else:
        kubernetes_validate.validate(manifest, VERSION, strict=True)
    for template in templates(manifest):
        metadata = {"name": "x", **template.get("metadata", {})}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        kubernetes_validate.validate(pod, VERSION, strict=True)


@cache
def schema(version: str, kind: str) -> Manifest:
    """Return the schema of an operator's object; unknown fields are errors."""
    group, _, name = version.partition("/")
    file = DEFINITIONS / f"{group}_{kind.lower()}s.yaml"
    if not file.is_file():
        pytest.skip(f"no definition of {kind} at {file}")
    definition = yaml.load(file.read_text(), yaml.CSafeLoader)
    (found,) = (
        each["schema"]["openAPIV3Schema"]
        for each in definition["spec"]["versions"]
        if each["name"] == name
    )
    _make_strict(found)
    found["properties"]["metadata"] = {"type": "object"}
    return found


def _make_strict(schema: Any) -> None:
    """Make unknown fields errors, which Kubernetes would drop without a word."""
    if isinstance(schema, list):
        for part in schema:
            _make_strict(part)
    elif isinstance(schema, dict):
        preserves = schema.get("x-kubernetes-preserve-unknown-fields")
        if isinstance(schema.get("properties"), dict) and not preserves:
            schema.setdefault("additionalProperties", False)
        if "(?i)" in str(schema.get("pattern")):  # Go's syntax
            del schema["pattern"]
        for part in schema.values():
            _make_strict(part)

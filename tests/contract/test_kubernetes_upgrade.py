"""Upgrades: a guard, evaluated on pairs of old and new objects, and a second cluster."""

import copy
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.contract.test_kubernetes import README, groups, selects
from tests.kubernetes import DEPLOY, Manifest, built, of_kind, schema, spec, templates, validate

cel = pytest.importorskip("cel_expr_python.cel")
optional = pytest.importorskip("cel_expr_python.ext.ext_optional")

POLICY, BINDING = yaml.safe_load_all((DEPLOY / "kuberay/upgrade-guard.yaml").read_text())
NAMES = ("object", "oldObject", "request", "variables")
ENVIRONMENT = cel.NewEnv(
    variables=dict.fromkeys(NAMES, cel.Type.DYN), extensions=[optional.ExtOptional()]
)


def evaluated(expression: str, data: dict[str, Any]) -> Any:
    return ENVIRONMENT.compile(expression).eval(data=data).plain_value()


def refused(new: Manifest, old: Manifest) -> bool:
    """Return whether the guard refuses the update, as the API server evaluates it."""
    data: dict[str, Any] = {"object": new, "oldObject": old}
    variables = POLICY["spec"]["variables"]
    data["variables"] = {each["name"]: evaluated(each["expression"], data) for each in variables}
    answers = [evaluated(each["expression"], data) for each in POLICY["spec"]["validations"]]
    assert {*answers} <= {True, False}, answers
    return not all(answers)


def service() -> Manifest:
    return copy.deepcopy(of_kind(built("overlays/gpu"), "RayService")["samclip"])


def leaves(value: Any, *path: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value that contains no other."""
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in parts:
        if isinstance(part, dict | list) and part:
            yield from leaves(part, *path, key)
        else:
            yield (*path, key)


def test_no_field_of_a_running_cluster_can_be_changed_or_removed() -> None:
    """The operator would ignore it."""
    old = service()
    paths = {*leaves(old["spec"]["rayClusterConfig"])}
    assert ("workerGroupSpecs", 0, "maxReplicas") in paths
    for path in paths - {("workerGroupSpecs", 0, "scaleStrategy")}:
        for change in ("replace", "remove"):
            new = service()
            part = new["spec"]["rayClusterConfig"]
            for key in path[:-1]:
                part = part[key]
            if change == "replace":
                part[path[-1]] = "other"
            else:
                del part[path[-1]]
            assert refused(new, old), (change, path)


def test_no_field_can_be_added_to_a_running_cluster() -> None:
    """Only those that the operator writes by itself, with their default values."""
    ours = {"scaleStrategy", "numOfHosts", "priority"}
    spec = schema("ray.io/v1", "RayService")["properties"]["spec"]
    cluster = spec["properties"]["rayClusterConfig"]["properties"]
    added = []
    for path, fields in {
        (): cluster,
        ("headGroupSpec",): cluster["headGroupSpec"]["properties"],
        ("workerGroupSpecs", 0): cluster["workerGroupSpecs"]["items"]["properties"],
    }.items():
        for field in fields.keys() - ours:
            new = service()
            part = new["spec"]["rayClusterConfig"]
            for key in path:
                part = part[key]
            if field not in part:
                part[field] = "other"
                added.append(field)
                assert refused(new, service()), (*path, field)
    assert {"tlsOptions", "serviceType", "idleTimeoutSeconds"} <= {*added}


def test_worker_groups_can_be_neither_added_nor_removed() -> None:
    old, new = service(), service()
    worker_groups = new["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    worker_groups.append({**copy.deepcopy(worker_groups[0]), "groupName": "more"})
    assert refused(new, old)
    assert refused(old, new)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"spec": {"serveConfigV2": "applications: []"}},
        {"metadata": {"finalizers": ["ray.io/rayservice-finalizer"], "labels": {"a": "b"}}},
        {"status": {"serviceStatus": "Running"}},
    ],
    ids=["nothing", "serve configuration", "metadata", "status"],
)
def test_all_else_can_be_changed(change: dict[str, dict[str, Any]]) -> None:
    """KubeRay 1.7 writes three fields when it adds its finalizer, or it would never start."""
    old, new = service(), service()
    for part, fields in change.items():
        new.setdefault(part, {}).update(fields)
    (workers,) = new["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    # Ours is the operator's, or it would own the list, and applying on the server be a conflict.
    assert workers.pop("scaleStrategy") == {}
    workers.update(numOfHosts=1, priority=0)
    assert not refused(new, old)
    assert not refused(old, new)


def quantities(manifest: Manifest) -> Iterator[Any]:
    for template in templates(manifest):
        for container in template["spec"]["containers"]:
            for kind in ("requests", "limits"):
                yield from container["resources"].get(kind, {}).values()


@pytest.mark.parametrize("overlay", ["overlays/cpu", "overlays/gpu"])
def test_quantities_are_written_as_the_operator_writes_them(overlay: str) -> None:
    """It rewrites the object, so that another form, applied again, would be a change."""
    found = [*quantities(of_kind(built(overlay), "RayService")["samclip"])]
    assert len(found) >= 6
    for quantity in found:
        assert isinstance(quantity, str)
        assert re.fullmatch(r"[1-9]\d{0,2}(m|Mi|Gi|)", quantity), quantity


def test_only_updates_of_services_are_checked_and_those_of_the_operator_are_not() -> None:
    """It changes the form of quantities when it adds its finalizer."""
    (condition,) = POLICY["spec"]["matchConditions"]
    for name, checked in (("kuberay-operator", False), ("deployer", True)):
        user = {"username": f"system:serviceaccount:kuberay:{name}"}
        assert evaluated(condition["expression"], {"request": {"userInfo": user}}) == checked
    (rule,) = POLICY["spec"]["matchConstraints"]["resourceRules"]
    assert (rule["apiGroups"], rule["resources"]) == (["ray.io"], ["rayservices"])
    assert rule["operations"] == ["UPDATE"]
    assert BINDING["spec"]["policyName"] == POLICY["metadata"]["name"]
    assert BINDING["spec"]["validationActions"] == ["Deny"]
    for manifest in (POLICY, BINDING):
        validate(manifest)


@pytest.mark.parametrize("overlay", ["cpu", "gpu", "public"])
def test_the_guard_is_of_each_namespace_and_what_no_upgrade_would_change_is_immutable(
    overlay: str,
) -> None:
    manifests = built(f"overlays/{overlay}")
    assert spec(manifests, "RayService", "samclip")["upgradeStrategy"] == {"type": "None"}
    labels = of_kind(manifests, "Namespace")["samclip"]["metadata"]["labels"]
    selector = BINDING["spec"]["matchResources"]["namespaceSelector"]
    assert selects(selector, labels)
    # Running pods have read their environment, and nothing restarts them.
    assert of_kind(manifests, "ConfigMap")["samclip-cluster"]["immutable"] is True
    assert "kubectl apply -f deploy/kuberay/upgrade-guard.yaml" in README


def test_a_second_cluster_has_its_own_namespace_and_the_collections_of_the_first() -> None:
    following = built("overlays/upgrade")
    for manifest in following:
        validate(manifest)
        if manifest["kind"] != "Namespace":
            assert manifest["metadata"]["namespace"] == "samclip-next"
    assert "samclip-next" in of_kind(following, "Namespace")
    for group in groups(following):
        (container,) = group["template"]["spec"]["containers"]
        url = {each["name"]: each.get("value") for each in container["env"]}["SAMCLIP_REDIS_URL"]
        assert url == "redis://:$(REDIS_CACHE_PASSWORD)@samclip-redis.samclip:6379/0"
    assert "samclip-redis" not in of_kind(following, "StatefulSet")
    # The first one's policies let the other's front doors and nodes in by this label.
    first = built("overlays/cpu")
    labels = of_kind(following, "Namespace")["samclip-next"]["metadata"]["labels"]
    peers = [
        peer
        for name in ("samclip-nodes", "samclip-redis")
        for rule in spec(first, "NetworkPolicy", name)["ingress"]
        for peer in rule["from"]
        if peer.get("namespaceSelector")
    ]
    assert (
        sum(selects(p["namespaceSelector"], labels) for p in peers if p["namespaceSelector"]) == 2
    )
    assert "-k deploy/kuberay/overlays/upgrade" in README


def test_the_secrets_of_the_first_cluster_can_be_copied_again() -> None:
    """``kubectl apply`` refuses an object that has the version or the identity of another."""
    (script,) = re.findall(r"sed -E '(.*?)'", README)
    metadata = {"name": "samclip", "namespace": "samclip", "resourceVersion": "7", "uid": "a-1"}
    secrets = yaml.safe_dump({"items": [{"data": {"key": "YQ=="}, "metadata": metadata}]})
    run = subprocess.run(["sed", "-E", script], input=secrets, capture_output=True, text=True)
    (copied,) = yaml.safe_load(run.stdout)["items"]
    assert copied["metadata"] == {"name": "samclip", "namespace": "samclip-next"}
    assert copied["data"] == {"key": "YQ=="}

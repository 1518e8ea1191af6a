"""The manifests are valid, closed by default, and match the code and the files of compose."""

import json
import re
from typing import Any

import pytest
import yaml

from deploy import generate
from services.settings import PREFIX, Settings
from tests import kubernetes
from tests.contract.test_deploy import CONFIG, ENVIRONMENT, is_setting
from tests.kubernetes import DEPLOY, Manifest, built, of_kind, spec, templates, validate
from tests.prometheus_server import RULES
from training.recipes import vit_b

SERVING = ("overlays/cpu", "overlays/gpu", "overlays/public")
TRAINING = ("training", "training/index")
DOOR = {"app.kubernetes.io/name": "samclip-front-door"}
README = (DEPLOY / "README.md").read_text()


@pytest.fixture(params=SERVING)
def serving(request: pytest.FixtureRequest) -> list[Manifest]:
    return built(request.param)


@pytest.fixture(params=(*SERVING, *TRAINING))
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return built(request.param)


def groups(serving: list[Manifest]) -> list[dict[str, Any]]:
    """Return the groups of nodes of the Ray cluster: the head and the workers."""
    cluster = spec(serving, "RayService", "samclip")["rayClusterConfig"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def test_kubernetes_and_the_operators_take_the_manifests(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        validate(manifest)


def confined(pod: dict[str, Any]) -> None:
    """Check what Kubernetes' restricted standard for pods demands."""
    context = pod["securityContext"]
    assert context["runAsNonRoot"]
    assert context["runAsUser"] > 0
    assert context["seccompProfile"]["type"] == "RuntimeDefault"
    assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    assert not any("hostPath" in volume for volume in pod.get("volumes", ()))
    for container in (*pod["containers"], *pod.get("initContainers", ())):
        restricted(container["securityContext"])
        assert container["resources"]["limits"]["memory"]
        assert re.search(r":[\w.-]+$", container["image"])
        names = [variable["name"] for variable in container.get("env", ())]
        assert all(is_setting(name) for name in names if name.startswith(PREFIX))


def restricted(context: dict[str, Any]) -> None:
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}


def test_every_pod_is_confined_and_has_no_variables_but_settings(
    manifests: list[Manifest],
) -> None:
    pods = [template["spec"] for manifest in manifests for template in templates(manifest)]
    assert pods
    for pod in pods:
        confined(pod)


def test_pods_that_the_operator_makes_are_confined_too(serving: list[Manifest]) -> None:
    """The namespace refuses any other pod."""
    labels = of_kind(serving, "Namespace")["samclip"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    cluster = spec(serving, "RayService", "samclip")["rayClusterConfig"]
    assert cluster["enableInTreeAutoscaling"]
    restricted(cluster["autoscalerOptions"]["securityContext"])
    job = spec(built("training"), "RayJob", "samclip-train")
    confined(job["submitterPodTemplate"]["spec"])


def front_door(serving: list[Manifest]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the pod of a front door, its container and the values in its environment."""
    pod = spec(serving, "StatefulSet", "samclip-front-door")["template"]["spec"]
    (container,) = pod["containers"]
    return pod, container, {each["name"]: each.get("value") for each in container["env"]}


def test_front_doors_start_only_with_keys_and_write_only_to_a_temporary_folder(
    serving: list[Manifest],
) -> None:
    """A pod whose Secret does not exist, or has no such key, does not start."""
    pod, container, environment = front_door(serving)
    assert container["securityContext"]["readOnlyRootFilesystem"]
    folder, _, key = str(environment["SAMCLIP_API_KEYS_FILE"]).rpartition("/")
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounted = {m["mountPath"]: volumes[m["name"]] for m in container["volumeMounts"]}
    assert "emptyDir" in mounted["/tmp"]  # for HAProxy's command socket
    secret = mounted[folder]["secret"]
    assert not secret.get("optional")
    assert f"create secret generic {secret['secretName']}" in README
    assert f"--from-file={key}" in README
    text = json.dumps(serving)
    assert "ALLOW_OPEN" not in text
    keys = re.findall(r'"secretKeyRef": {"key": "([\w-]+)", "name": "samclip"}', text)
    assert keys
    assert all(f"--from-literal={key}=" in README for key in keys)


def test_the_loss_of_a_node_or_a_drain_leaves_a_front_door_and_a_worker(
    serving: list[Manifest],
) -> None:
    door = spec(serving, "StatefulSet", "samclip-front-door")
    assert spec(serving, "HorizontalPodAutoscaler", "samclip-front-door")["minReplicas"] >= 2
    spread = door["template"]["spec"]["topologySpreadConstraints"]
    assert [each["topologyKey"].rpartition("/")[2] for each in spread] == ["hostname", "zone"]
    assert all(selects(each["labelSelector"], DOOR) for each in spread)
    (workers,) = groups(serving)[1:]
    assert workers["minReplicas"] >= 2
    labels = {
        "samclip-front-door": DOOR,
        "samclip-workers": workers["template"]["metadata"]["labels"],
    }
    for name, selected in labels.items():
        budget = spec(serving, "PodDisruptionBudget", name)
        assert selects(budget["selector"], selected)
        # Of pods without a controller that counts them, Kubernetes takes only this.
        assert budget["minAvailable"] == 1


@pytest.mark.parametrize("name", ["samclip-redis", "samclip-gcs-redis"])
def test_a_redis_that_hangs_is_restarted_and_one_that_loads_is_not(name: str) -> None:
    pod = spec(built("overlays/cpu"), "StatefulSet", name)["template"]["spec"]
    (container,) = pod["containers"]
    assert "LOADING" in container["livenessProbe"]["exec"]["command"][-1]
    assert "LOADING" not in container["readinessProbe"]["exec"]["command"][-1]


def test_the_ray_service_has_the_serve_configuration(serving: list[Manifest]) -> None:
    assert yaml.safe_load(spec(serving, "RayService", "samclip")["serveConfigV2"]) == CONFIG
    data = of_kind(serving, "ConfigMap")["samclip-cluster"]["data"]
    assert data.items() >= {**ENVIRONMENT, "SAMCLIP_DTYPE": data["SAMCLIP_DTYPE"]}.items()
    for group in groups(serving):
        (container,) = group["template"]["spec"]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert str(ports["serve"]) == ENVIRONMENT["SAMCLIP_INNER_HTTP_PORT"]
        assert str(ports["grpc"]) == ENVIRONMENT["SAMCLIP_INNER_GRPC_PORT"]
        assert {"configMapRef": {"name": "samclip-cluster"}} in container["envFrom"]
        # Not optional: without a bucket, collections would be lost with their node.
        assert {"secretRef": {"name": "samclip-index"}} in container["envFrom"]
    # All replicas compute in one precision: all CPUs support float32, and all GPUs bfloat16.
    on_gpus = data.get("SAMCLIP_DEVICE") == "cuda"
    assert data["SAMCLIP_DTYPE"] == ("bfloat16" if on_gpus else "float32")
    assert not any("dtype" in app.get("args", ()) for app in CONFIG["applications"])


NAMESPACE = "kubernetes.io/metadata.name"


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    return selector["matchLabels"].items() <= labels.items()


def test_only_the_front_door_reaches_the_inner_ports_from_elsewhere(
    serving: list[Manifest],
) -> None:
    inner = {int(ENVIRONMENT[f"SAMCLIP_INNER_{name}_PORT"]) for name in ("HTTP", "GRPC")}
    policy = spec(serving, "NetworkPolicy", "samclip-nodes")
    for group in groups(serving):
        assert selects(policy["podSelector"], group["template"]["metadata"]["labels"])
    assert policy["policyTypes"] == ["Ingress"]
    for rule in policy["ingress"]:
        (peer,) = rule["from"]
        ports = {port["port"] for port in rule.get("ports", ())}
        if not ports:  # a rule without ports allows all
            assert peer == {"podSelector": policy["podSelector"]}
        elif selects(peer["podSelector"], DOOR):
            assert ports == inner
        else:
            assert not ports >= inner


def test_a_policy_admits_no_pods_of_any_namespace(serving: list[Manifest]) -> None:
    """A pod's label is its maker's choice, a namespace's name is not."""
    for policy in of_kind(serving, "NetworkPolicy").values():
        for rule in policy["spec"]["ingress"]:
            for peer in rule.get("from", ()):
                assert peer.get("namespaceSelector") != {}, policy["metadata"]["name"]
    peers = [rule["from"][0] for rule in spec(serving, "NetworkPolicy", "samclip-nodes")["ingress"]]
    admitted = {
        peer["podSelector"]["matchLabels"]["app.kubernetes.io/name"]: labels[NAMESPACE]
        for peer in peers
        if NAMESPACE in (labels := peer.get("namespaceSelector", {}).get("matchLabels", {}))
    }
    assert admitted == {"kuberay-operator": "kuberay-operator", "prometheus": "monitoring"}
    for name in admitted.values():
        assert f"`{name}`" in README


def test_only_the_nodes_reach_either_redis(serving: list[Manifest]) -> None:
    policy = spec(serving, "NetworkPolicy", "samclip-redis")
    (selected,) = policy["podSelector"]["matchExpressions"]
    stateful = {name for name in of_kind(serving, "StatefulSet") if "redis" in name}
    assert set(selected["values"]) == stateful
    (rule,) = policy["ingress"]
    (peer,) = rule["from"]
    for group in groups(serving):
        assert selects(peer["podSelector"], group["template"]["metadata"]["labels"])
    assert not selects(peer["podSelector"], DOOR)


def test_limits_of_keys_hold_for_all_front_doors_together(serving: list[Manifest]) -> None:
    """Each front door knows the names of all that there may be."""
    doors = spec(serving, "StatefulSet", "samclip-front-door")
    _, container, environment = front_door(serving)
    names = Settings(front_doors=environment["SAMCLIP_FRONT_DOORS"].replace("$(NAMESPACE)", "ns"))
    most = spec(serving, "HorizontalPodAutoscaler", "samclip-front-door")["maxReplicas"]
    domain = f"{doors['serviceName']}.ns.svc.cluster.local"
    assert names.front_doors == tuple(f"samclip-front-door-{i}.{domain}" for i in range(most))
    assert spec(serving, "Service", doors["serviceName"])["clusterIP"] == "None"
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    between = {ports["keeper-http"], ports["keeper-grpc"]}
    assert between == {names.keeper_http_port, names.keeper_grpc_port}
    everyone, among = spec(serving, "NetworkPolicy", "samclip-front-door")["ingress"]
    assert not between & {port["port"] for port in everyone["ports"]}
    assert {port["port"] for port in among["ports"]} == between
    assert among["from"] == [{"podSelector": doors["selector"]}]


def test_prometheus_scrapes_with_a_key_whatever_the_namespace(serving: list[Manifest]) -> None:
    scrape = spec(serving, "ScrapeConfig", "samclip")
    assert "staticConfigs" not in scrape
    (discovery,) = scrape["kubernetesSDConfigs"]
    assert discovery == {"role": "Service", "namespaces": {"ownNamespace": True}}
    kept = scrape["relabelings"][0]
    assert "samclip" in of_kind(serving, "Service")
    assert re.fullmatch(kept["regex"], "samclip;http")
    (doors,) = spec(serving, "PodMonitor", "samclip-front-door")["podMetricsEndpoints"]
    for job in (scrape, doors):
        secret = job["authorization"]["credentials"]
        assert f"create secret generic {secret['name']}" in README
        assert f"--from-literal={secret['key']}=$(samclip keys add" in README


def test_rules_and_dashboards_are_those_of_compose(serving: list[Manifest]) -> None:
    files = [yaml.safe_load((DEPLOY / "prometheus" / name).read_text()) for name in RULES]
    groups = [group for file in files for group in file["groups"]]
    assert spec(serving, "PrometheusRule", "samclip") == {"groups": groups}
    dashboards = of_kind(serving, "ConfigMap")["samclip-dashboards"]
    assert dashboards["metadata"]["labels"]["grafana_dashboard"] == "1"
    folders = [DEPLOY / "grafana" / name for name in ("dashboards", "cluster")]
    files = [file for folder in folders for file in folder.iterdir()]
    assert dashboards["data"] == {file.name: file.read_text() for file in files}


def test_generated_manifests_are_up_to_date() -> None:
    assert generate.RULE_FILE.read_text() == generate.prometheus_rule(), "run make manifests"
    assert generate.SERVE_FILE.read_text() == generate.serve_config(), "run make manifests"
    kubernetes.tool("kustomize")
    made = generate.chart_files()
    folder = DEPLOY / "helm/samclip/templates"
    assert {*made} == {*folder.iterdir()}
    for file, text in made.items():
        assert file.read_text() == text, "run make manifests"


def test_applying_again_keeps_the_number_of_front_doors_and_where_they_lead(
    serving: list[Manifest],
) -> None:
    """The autoscaler sets the number; after an upgrade, a ConfigMap names the second cluster."""
    door = spec(serving, "StatefulSet", "samclip-front-door")
    assert "replicas" not in door
    _, container, environment = front_door(serving)
    assert "SAMCLIP_SERVE_HOST" not in environment
    first, last = (source["configMapRef"] for source in container["envFrom"])
    assert "SAMCLIP_SERVE_HOST" in of_kind(serving, "ConfigMap")[first["name"]]["data"]
    assert last["optional"]
    assert last["name"] not in of_kind(serving, "ConfigMap")
    (command,) = re.findall(rf"create configmap {last['name']} (?:.*\\\n)*.*", README)
    assert command.endswith("| kubectl apply -f -")  # ``kubectl create`` alone works only once


def test_an_ingress_leads_each_protocol_to_its_port_over_tls() -> None:
    public = built("overlays/public")
    ports = {port["name"] for port in spec(public, "Service", "samclip")["ports"]}
    for name, ingress in of_kind(public, "Ingress").items():
        (rule,) = ingress["spec"]["rules"]
        (path,) = rule["http"]["paths"]
        port = path["backend"]["service"]["port"]["name"]
        assert port == name.removeprefix("samclip-")
        assert port in ports
        protocol = "nginx.ingress.kubernetes.io/backend-protocol"
        assert (ingress["metadata"]["annotations"].get(protocol) == "GRPC") == (port == "grpc")
        (certificate,) = ingress["spec"]["tls"]
        assert rule["host"] in certificate["hosts"]
    assert len(of_kind(public, "Ingress")) == 2


def test_training_has_the_image_that_trains() -> None:
    """No pod has the name that only the machine of the build knows."""
    for folder in TRAINING:
        pods = [t["spec"] for manifest in built(folder) for t in templates(manifest)]
        images = {container["image"] for pod in pods for container in pod["containers"]}
        assert images == {"registry.example.com/samclip:0.1.0-train"}
    assert "EXTRAS=serve,train" in (DEPLOY / "Dockerfile").read_text()


def test_the_sets_of_the_recipe_are_indexed_where_the_training_job_looks() -> None:
    (index,) = templates(built("training/index"))
    submitter, *nodes = sorted(
        templates(built("training")), key=lambda template: "volumes" in template["spec"]
    )
    assert "volumes" not in submitter["spec"]
    pods = [index["spec"], *(node["spec"] for node in nodes)]
    for key in ("volumes", "securityContext"):
        assert all(pod[key] == pods[0][key] for pod in pods)
    containers = [container for pod in pods for container in pod["containers"]]
    for key in ("env", "image", "securityContext", "volumeMounts"):
        assert all(container[key] == containers[0][key] for container in containers)
    recipe = vit_b()
    sets = (*recipe.photo_sets, *recipe.region_sets)
    assert containers[0]["args"] == [f"/data/photographs/{name}" for name, _ in sets]

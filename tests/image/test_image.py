"""The image: what it contains, that it is closed by default, and that it needs no network."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from services.front_door import keys
from tests import kubernetes
from tests.checkout import ROOT
from tests.image import engine
from tests.image.engine import docker
from tests.image.stack import START_S, lines, until

pytestmark = pytest.mark.image

CONFINED = (
    *("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--init"),
    *("--tmpfs", "/tmp:mode=1777,exec", "--shm-size", "512m", "--memory", "8g"),
    *("--tmpfs", "/home/samclip:uid=10001,gid=10001,mode=700"),
)
PHOTOGRAPH = Path("services/gateway/playground/samples/chelsea.jpg")


def in_image(image: str, *command: str) -> str:
    return docker(
        "run", "--rm", "--network", "none", "--entrypoint", command[0], image, *command[1:]
    )


def test_it_says_what_it_is_and_does_not_run_as_root(image: str) -> None:
    configuration = json.loads(docker("image", "inspect", image))[0]["Config"]
    assert configuration["User"] == "10001"
    labels = {name.rpartition(".")[2]: text for name, text in configuration["Labels"].items()}
    assert labels["licenses"] == "Apache-2.0"
    assert (labels["version"], labels["revision"]) == ("0.0.test", "f00d")


def test_its_user_can_write_the_volumes_of_compose(image: str) -> None:
    """A new volume takes its owner from the image's folder, and is root's where there is none."""
    for folder in ("/var/lib/samclip", "/runs"):
        new = ("--mount", f"type=volume,target={folder}")
        docker("run", "--rm", *new, "--entrypoint", "touch", image, f"{folder}/file")


def test_it_has_at_most_1_4_gigabytes(image: str) -> None:
    """LanceDB and pyarrow are a fourth of it."""
    assert json.loads(docker("image", "inspect", image))[0]["Size"] <= 1_400_000_000


def test_it_has_what_decodes_masks_in_the_browser(image: str) -> None:
    program = "from services.gateway import browser_decoder as d; print(d.folder(wanted=False))"
    site = "import sys, samclip; sys.path.append(samclip.__path__[0] + '/_bundled'); "
    found = in_image(image, "python", "-c", site + program)
    if found == "None":
        pytest.skip("the build could not reach npm's registry")
    assert found.endswith("onnxruntime")


def test_its_packages_are_those_of_the_lock(image: str) -> None:
    """So two builds of one commit have the same packages, and none of them is torch."""
    program = (
        "from packaging.markers import *; import json; print(json.dumps(default_environment()))"
    )
    environment = json.loads(in_image(image, "python", "-c", program))
    text = (ROOT / "requirements.lock").read_text()
    pins = map(Requirement, re.findall(r"^([a-z].*?) \\$", text, re.MULTILINE))
    locked = {
        f"{pin.name}{pin.specifier}"
        for pin in pins
        if pin.marker is None or pin.marker.evaluate(environment)
    }
    installed = {
        line.lower().replace("_", "-") for line in in_image(image, "pip", "freeze").splitlines()
    }
    assert {line for line in installed if not line.startswith("samclip @")} == locked
    assert not any(line.startswith("torch") for line in installed)


def test_training_and_gpus_need_more_packages_but_no_other_versions(image: str) -> None:
    """Their images hold gigabytes of torch, so pip only says what it would install."""
    sources = "pyproject.toml README.md LICENSE client samclip_core services training"
    program = (
        f"mkdir /tmp/s && cd /source && cp -r {sources} /tmp/s"
        " && pip install --quiet --dry-run --report - '/tmp/s[gpu,train]'"
    )
    command = ("run", "--rm", "--user", "0", "--network", "host", "--volume", f"{ROOT}:/source:ro")
    index = [word for item in engine.index() for word in ("--env", item)]
    report = json.loads(docker(*command, *index, "--entrypoint", "sh", image, "-c", program))
    added = {canonicalize_name(each["metadata"]["name"]) for each in report["install"]}
    assert added > {"torch", "torchvision", "onnx", "samclip"}
    locked = re.findall(r"^([a-z][^=]*)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert not added & {*locked}


def test_nobody_is_served_without_a_key_unless_that_is_said(image: str) -> None:
    command = ["docker", "run", "--rm", "--network", "none", *CONFINED, image]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2, run.stdout
    assert "requests would need no key" in run.stderr


def test_it_answers_without_a_network(image: str) -> None:
    container = docker(
        *("run", "--detach", "--network", "none", "--env", "SAMCLIP_HOST=127.0.0.1"),
        *(*CONFINED, image),
    )
    try:
        health = ("inspect", "--format", "{{.State.Health.Status}}", container)
        until(lambda: docker(*health) == "healthy", START_S, lines(container))
        root = docker(
            "exec", container, "python", "-c", "import services; print(*services.__path__)"
        )
        photograph = Path(root).parent / PHOTOGRAPH
        command = ("samclip", "classify", "--json", photograph, "--labels", "a cat", "a rocket")
        answer = json.loads(docker("exec", container, *command))
        assert answer["results"][0]["label"] == "a cat"
    finally:
        docker("rm", "--force", container)


def test_a_front_door_runs_as_its_manifest_says(image: str, tmp_path: Path) -> None:
    """With the environment, user, keys and read-only root of the StatefulSet, it asks for a key."""
    manifests = kubernetes.built("overlays/cpu")
    doors = kubernetes.of_kind(manifests, "StatefulSet")["samclip-front-door"]["spec"]
    (container,) = doors["template"]["spec"]["containers"]
    values = dict(kubernetes.of_kind(manifests, "ConfigMap")["samclip-cluster"]["data"])
    for variable in container["env"]:
        values[variable["name"]] = variable.get("value", "a-secret").replace("$(NAMESPACE)", "ns")
    keys.write(tmp_path / "keys", [keys.Key(keys.digest("the key"), "ann", ("read",), "ann")])
    (tmp_path / "keys").chmod(0o444)
    tmp_path.chmod(0o755)
    environment = [word for item in values.items() for word in ("--env", "=".join(item))]
    running = docker(
        *("run", "--detach", "--read-only", "--cap-drop", "ALL", "--tmpfs", "/tmp:mode=1777"),
        *("--add-host", "samclip-serve:127.0.0.1", "--volume", f"{tmp_path}:/etc/samclip:ro"),
        *(*environment, image, *container["args"]),
    )
    program = (
        "import sys, urllib.request as u\n"
        "asked = u.Request('http://127.0.0.1:8000/classify', headers={'x-api-key': sys.argv[1]})\n"
        "try: u.urlopen(asked)\n"
        "except u.HTTPError as error: print(error.code)\n"
    )
    try:
        ask = ("exec", running, "python", "-c", program)
        until(lambda: docker(*ask, "another", check=False) == "401", 60, lines(running))
        assert docker(*ask, "the key") == "503"  # there is no Serve behind it
    finally:
        docker("rm", "--force", running)

"""A Docker engine: the machine's own, or one that the tests start, as root, for themselves.

Where the registry cannot be reached, images of the same names are made from Debian's packages. The
base image then has Debian's Python, 3.13, instead of 3.12, so another file of each wheel in the
lock is installed; versions are the same.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.checkout import ROOT

BASE = "python:3.12.12-slim-trixie"
STAND_INS = {
    "redis": "redis:8.2.2",
    "prometheus": "prom/prometheus:v3.5.0",
    "alertmanager": "prom/alertmanager:v0.28.1",
}
CLEAN = """\
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/*.bin || true"; };
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
"""
"""As in the official images: apt leaves no files behind."""
STAND_IN = "samclip.stand-in=true"
"""The label of these images. An engine that is not the tests' own does not keep them: other builds
would take them for the real ones."""
START_S = 60
BRIDGE = Path("/sys/class/net/docker0")
STORE = ROOT / "out/docker"
"""Images of an engine that the tests start, so that the next run builds only what has changed."""


class NoEngineError(Exception):
    """There is no Docker engine, and none can be started."""


def docker(*words: object, check: bool = True, text: str = "") -> str:
    """Run a docker command; return its output. A failure shows what it printed."""
    command = ["docker", *map(str, words)]
    run = subprocess.run(command, cwd=ROOT, input=text, capture_output=True, text=True)
    assert not check or run.returncode == 0, f"{command}: {run.stdout}{run.stderr}"
    return run.stdout.strip()


def answers() -> bool:
    return subprocess.run(["docker", "info"], capture_output=True).returncode == 0


@contextmanager
def running() -> Iterator[None]:
    """Yield while an engine answers; leave one that ran before as it is. Raises NoEngineError."""
    if not shutil.which("docker"):
        raise NoEngineError("docker is not installed: install Debian's docker.io")
    if os.geteuid() != 0:
        raise NoEngineError("the tests give folders to the users of the containers: run as root")
    if answers():
        try:
            yield
        finally:
            docker("image", "prune", "--all", "--force", "--filter", f"label={STAND_IN}")
        return
    if not shutil.which("dockerd"):
        raise NoEngineError("no Docker engine answers, and dockerd is not installed")
    STORE.mkdir(parents=True, exist_ok=True)
    had_bridge = BRIDGE.exists()
    with open(STORE.with_suffix(".log"), "w") as log:
        command = ["dockerd", "--data-root", STORE]
        # In a session of its own: Ctrl-C ends the tests first, which remove their containers.
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + START_S
        while not answers():
            if process.poll() is not None or time.monotonic() > deadline:
                raise NoEngineError(f"dockerd does not start here: see {log.name}")
            time.sleep(0.5)
        yield
    finally:
        process.terminate()
        process.wait()
        if BRIDGE.exists() and not had_bridge:
            remove_network()


def remove_network() -> None:
    """Remove the bridge and the rules of the firewall that dockerd leaves behind."""
    subprocess.run(["ip", "link", "delete", BRIDGE.name], check=True)
    for family in ("iptables", "ip6tables"):
        saved = subprocess.run([f"{family}-save"], check=True, capture_output=True, text=True)
        lines = saved.stdout.splitlines(keepends=True)
        kept = "".join(line for line in lines if "DOCKER" not in line and BRIDGE.name not in line)
        subprocess.run([f"{family}-restore"], check=True, input=kept, text=True)


def check_containers() -> None:
    """Raise NoEngineError if the engine answers, but containers cannot run on this machine."""
    command = ["docker", "run", "--rm", "--network", "none", BASE, "true"]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0:
        raise NoEngineError(f"containers do not run here: {run.stderr.strip()}")


def available(image: str) -> bool:
    """Return whether the engine has the image, or can pull it."""
    inspected = subprocess.run(["docker", "image", "inspect", image], capture_output=True)
    if inspected.returncode == 0:
        return True
    return subprocess.run(["docker", "pull", "--quiet", image], capture_output=True).returncode == 0


def make_base() -> None:
    """Make the base image from Debian's packages, with this machine's certificates."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        packages = "--include=ca-certificates,python3,python3-venv"
        command = ["debootstrap", "--variant=minbase", packages, "trixie", root]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        shutil.copy("/etc/ssl/certs/ca-certificates.crt", root / "etc/ssl/certs")
        (root / "etc/apt/apt.conf.d/docker-clean").write_text(CLEAN)
        (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        for leftover in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale"):
            shutil.rmtree(root / leftover)
            (root / leftover).mkdir()
        archive = Path(folder) / "root.tar"
        subprocess.run(["tar", "--directory", root, "--create", "--file", archive, "."], check=True)
        changes = ("ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt", f"LABEL {STAND_IN}")
        words = [word for change in changes for word in ("--change", change)]
        docker("import", *words, archive, BASE)


def make_stand_in(name: str, image: str) -> None:
    """Make an image of ``docker-compose.yml`` from Debian's package of the same program."""
    recipe = (Path(__file__).parent / "stand_ins.Dockerfile").read_text()
    words = ("--target", name, "--tag", image, "--label", STAND_IN)
    docker("build", "--network", "host", *words, "-", text=recipe)


def index() -> list[str]:
    """Return the variable that names the package index of this machine's pip, if there is one."""
    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    found = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return [f"PIP_INDEX_URL={found}"] if found else []


def build(tag: str, *arguments: str) -> None:
    """Build the project's image, with build arguments like ``VERSION=1``."""
    words = [word for item in (*index(), *arguments) for word in ("--build-arg", item)]
    file = ROOT / "deploy/Dockerfile"
    docker("build", "--network", "host", "--file", file, "--tag", tag, *words, ROOT)

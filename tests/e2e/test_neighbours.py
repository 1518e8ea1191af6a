"""A service beside other users of the machine, and beside a second service of the same user."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc
import psutil
import pytest
from samclip.v1 import samclip_pb2 as pb
from samclip.v1 import samclip_pb2_grpc as rpc

from tests.checkout import ROOT
from tests.e2e.conftest import Service, channel_to, start
from tests.in_process import png

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

NOBODY = 65534
REACH = f"""
import os, socket, sys
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
for path in sys.stdin.read().split("\\0"):
    for right in (os.R_OK, os.W_OK, os.X_OK):
        if os.access(path, right):
            print(path)
    try:
        os.rename(path, path + ".taken")
        print("renamed", path)
    except OSError:
        pass
    line = socket.socket(socket.AF_UNIX)
    try:
        line.connect(path)
        print("connected to", path)
    except OSError:
        pass
"""
"""Script that prints each path which another user may read, write, enter, rename or connect to."""
ASK_RAY = """
import sys
from ray._raylet import GcsClient
print(GcsClient(address=sys.argv[1]).internal_kv_keys(b"", None, timeout=20))
"""


BESIDE_A_CLUSTER = """
set -e
cp "$(command -v sleep)" {folder}/raylet
{folder}/raylet 600 & neighbour=$!
until [ "$(cat /proc/$neighbour/comm)" = raylet ]; do sleep 0.1; done
{alone} {ray} stop --force
if kill -0 $neighbour; then echo survived; fi
{ray} stop --force
wait $neighbour || echo ended
"""
"""Script for its own PID namespace: the second `ray stop` ends every Ray that it sees."""


def variable(service: Service, name: str) -> str:
    """Return an environment variable of a child process of the service."""
    for pid in service.processes():
        found = psutil.Process(pid).environ().get(name)
        if found and pid != service.process.pid:
            return found
    raise LookupError(name)


def index(service: Service, collection: str, id: str) -> None:
    item = pb.IndexItem(id=id, image=pb.Image(encoded=png(noise=hash(id) % 1000)))
    with channel_to(service) as opened:
        request = pb.IndexRequest(collection=collection, items=[item])
        answer = rpc.RetrievalServiceStub(opened).Index(request, timeout=300, wait_for_ready=True)
    assert answer.indexed == 1, answer


def held(service: Service, collection: str) -> set[str]:
    with channel_to(service) as opened:
        request = pb.ListItemsRequest(collection=collection)
        return {item.id for item in rpc.RetrievalServiceStub(opened).ListItems(request).items}


def replica_of_retrieval(service: Service) -> int:
    names = {pid: " ".join(psutil.Process(pid).cmdline()) for pid in service.processes()}
    return next(pid for pid, name in names.items() if "ServeReplica:retrieval" in name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_another_user_reaches_nothing_of_a_service(service: Service, index_dir: Path) -> None:
    index(service, "pets", "cat")
    directory = Path(variable(service, "RAY_SERVE_HAPROXY_BINARY_PATH")).parent
    paths = [directory, *directory.rglob("*"), index_dir, *index_dir.rglob("*")]
    sockets = [path for path in paths if path.is_socket()]
    assert {"admin.sock", "door.sock", "raylet"} <= {path.name for path in sockets}
    reached = subprocess.run(
        [sys.executable, "-Ic", REACH],
        input="\0".join(map(str, paths)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert reached.stdout == ""
    assert {oct(path.stat().st_mode & 0o777) for path in index_dir.iterdir()} == {"0o600"}


def test_ray_answers_nobody_who_lacks_the_token_of_this_start(
    service: Service, tmp_path: Path
) -> None:
    gcs = next(p for p in service.processes() if psutil.Process(p).name() == "gcs_server")
    ports = {c.laddr.port for c in psutil.Process(gcs).net_connections() if c.status == "LISTEN"}

    def ask(token: str) -> list[str]:
        answers = []
        for port in ports:
            asked = subprocess.run(
                [sys.executable, "-c", ASK_RAY, f"127.0.0.1:{port}"],
                capture_output=True,
                text=True,
                env={"HOME": str(tmp_path), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token},
            )
            answers.append(asked.stdout)
        return answers

    assert any(ask(variable(service, "RAY_AUTH_TOKEN")))
    assert not any(ask("0" * 64))


def test_a_second_service_is_refused_the_same_folder(
    service: Service, index_dir: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    index(service, "pets", "cat")
    with pytest.raises(pytest.fail.Exception) as refused:
        start(tmp_path, str(tiny_checkpoint), INDEX_DIR=index_dir).stop()
    log = str(refused.value)
    assert f"{index_dir} is in use by process {service.process.pid} on" in log
    assert "SAMCLIP_INDEX_DIR" in log
    index(service, "pets", "dog")
    assert held(service, "pets") >= {"cat", "dog"}


def test_a_killed_replica_is_replaced_by_one_that_has_all_items(service: Service) -> None:
    index(service, "birds", "crow")
    replica = replica_of_retrieval(service)
    os.kill(replica, signal.SIGKILL)
    deadline = time.monotonic() + 300
    while True:
        try:
            index(service, "birds", "wren")
            break
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline:
                raise
            time.sleep(0.5)
    assert replica_of_retrieval(service) != replica
    assert held(service, "birds") == {"crow", "wren"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make namespaces")
def test_a_ray_beside_make_cluster_survives_what_is_stopped_inside(
    tmp_path: Path,
) -> None:
    recipe = re.search(r"TEST_CLUSTER=1 (.*?)\$\(RUN\)", (ROOT / "Makefile").read_text(), re.S)
    assert recipe
    alone = recipe[1].replace("\\\n", " ")
    ray = Path(sys.executable).with_name("ray")
    script = BESIDE_A_CLUSTER.format(alone=alone, ray=ray, folder=tmp_path)
    run = subprocess.run(
        ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", script],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    events = [line for line in run.stdout.splitlines() if line in ("survived", "ended")]
    assert events == ["survived", "ended"]

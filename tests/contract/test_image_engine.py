"""The Docker engine of `make image`: whose it is, and when it ends. No container is started."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkout import ROOT
from tests.image import engine

DOCKER = '#!/bin/sh\necho "$@" >> "{0}/asked"\ntest -s "{0}/up"\n'
DOCKERD = '#!/bin/sh\necho $$ > "{0}/up"\nexec sleep 600\n'


@pytest.fixture
def up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put stand-ins of docker and dockerd first; return the file that exists while it answers."""
    for name, text in (("docker", DOCKER), ("dockerd", DOCKERD)):
        (tmp_path / name).write_text(text.format(tmp_path))
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(engine, "STORE", tmp_path / "store")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return tmp_path / "up"


def test_an_engine_of_the_tests_outlives_ctrl_c_and_ends_with_them(up: Path) -> None:
    """Ctrl-C reaches all processes of the terminal's session at once."""
    with engine.running():
        process = int(up.read_text())
        assert os.getsid(process) != os.getsid(0)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_an_engine_that_ran_before_goes_on_and_keeps_no_stand_ins(up: Path) -> None:
    up.write_text("0")
    with engine.running():
        assert not (up.parent / "store").exists()
    assert up.read_text() == "0"
    last = (up.parent / "asked").read_text().splitlines()[-1]
    assert last == f"image prune --all --force --filter label={engine.STAND_IN}"


def test_another_user_than_root_is_told_and_starts_nothing(
    up: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where an engine answers: folders of the containers' users could not be made."""
    up.write_text("0")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(engine.NoEngineError, match="run as root"), engine.running():
        pass


IN_A_NETWORK_OF_ITS_OWN = """
set -e
mount -t sysfs none /sys
ip link add docker0 type bridge
iptables -N DOCKER
iptables -A FORWARD -o docker0 -j DOCKER
iptables -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
iptables -A INPUT -p tcp --dport 7777 -j ACCEPT
"$0" -c "from tests.image.engine import remove_network; remove_network()"
ip link
iptables-save
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a network of its own")
@pytest.mark.skipif(shutil.which("iptables") is None, reason="no iptables: install it")
def test_nothing_of_the_engines_network_stays_and_all_else_does() -> None:
    command = ["unshare", "--net", "--mount", "sh", "-c", IN_A_NETWORK_OF_ITS_OWN, sys.executable]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "docker" not in run.stdout.lower()
    assert "-A INPUT -p tcp -m tcp --dport 7777 -j ACCEPT" in run.stdout

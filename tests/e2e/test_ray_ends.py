"""A service whose Ray has died ends at once, and says so in its last line."""

import json
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import STOP_S, start

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.mark.parametrize("name", ["gcs_server", "raylet"])
def test_it_ends_with_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, checkpoint_name: str, name: str
) -> None:
    service = start(tmp_path_factory.mktemp(name), checkpoint_name)
    processes = [psutil.Process(pid) for pid in service.processes()]
    lost = next(each for each in processes if each.name() == name)
    directory = Path(lost.environ()["RAY_TMPDIR"])
    lost.kill()
    assert service.process.wait(STOP_S) == 1
    errors = [line["message"] for line in service.lines(level="ERROR")]
    assert errors[-1].startswith(f"{name} (signal 9) of Ray ended")
    assert "start the service again" in errors[-1]
    assert json.loads(service.log.read_text().splitlines()[-1])["message"] == errors[-1]
    _, alive = psutil.wait_procs(processes, timeout=STOP_S)
    assert not alive
    assert not directory.exists()

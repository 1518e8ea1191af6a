"""A second service beside the first, with keys, and its complete stop by Ctrl-C."""

import json
from pathlib import Path

import grpc
import httpx
import pytest
from samclip.v1 import samclip_pb2 as pb
from samclip.v1 import samclip_pb2_grpc as rpc

from services.front_door import keys
from tests.e2e.conftest import Service, start

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]


def test_two_run_side_by_side_and_ctrl_c_leaves_nothing(
    service: Service, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    file = tmp_path / "keys"
    keys.write(file, [keys.Key(keys.digest("let-me-in"), "ann", ("read",), "ann")])
    second = start(tmp_path, str(tiny_checkpoint), API_KEYS_FILE=file)
    try:
        assert httpx.get(f"{service.url}/readyz", timeout=60).json()["ready"] is True
        refused = httpx.post(f"{second.url}/describe", json={}, timeout=60)
        assert refused.status_code == 401
        key = {"authorization": "Bearer let-me-in"}
        admitted = httpx.post(f"{second.url}/describe", json={}, headers=key, timeout=60)
        assert admitted.json() == {"collections": []}
        with grpc.insecure_channel(second.address) as channel:
            request = pb.EmbedTextRequest(texts=["a cat"])
            metadata = [*key.items()]
            answer = rpc.BackboneServiceStub(channel).EmbedText(request, metadata=metadata)
        assert answer.model.name == "tiny-edge"
        assert len(second.processes()) > 8
    finally:
        exit_code = second.stop()
    log = second.log.read_text()
    assert exit_code == 0, log
    assert not second.processes()
    assert "Traceback" not in log
    lines = log.partition("Ctrl-C stops.\n")[2].splitlines()
    last = [json.loads(line).get("message", "") for line in lines]
    assert "stopping …" in last
    assert all(line.startswith("Proxy ") for line in last[last.index("stopping …") + 1 :])
    assert httpx.get(f"{service.url}/readyz", timeout=60).json()["ready"] is True

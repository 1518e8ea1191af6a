"""OpenVINO's other devices, in whose place the CPU computes here."""

from pathlib import Path
from typing import Any

import openvino as ov
import pytest

from samclip_core import engine
from samclip_core.engine import compiled, with_openvino
from samclip_core.errors import CheckpointError
from samclip_core.io import checkpoint

pytestmark = pytest.mark.slow

EDGE = checkpoint.resolve("edge")


class Core:
    """An ``ov.Core`` that also finds two GPUs, which have the precision float16 alone."""

    available_devices = ("CPU", "GPU.0", "GPU.1")

    def __init__(self) -> None:
        self._core = ov.Core()
        self.used: list[tuple[str, str]] = []

    def get_property(self, device: str, name: str) -> Any:
        if device != "CPU" and name == "OPTIMIZATION_CAPABILITIES":
            return ["FP16", "EXPORT_IMPORT"]
        return self._core.get_property("CPU", name)

    def read_model(self, path: Path) -> ov.Model:
        return self._core.read_model(path)

    def compile_model(
        self, model: ov.Model, device: str, options: dict[str, str]
    ) -> ov.CompiledModel:
        self.used.append((device, model.inputs[0].any_name))
        if device != "CPU":  # which may not compute in float16
            options = {**options, "INFERENCE_PRECISION_HINT": "f32"}
        return self._core.compile_model(model, "CPU", options)


@pytest.fixture(scope="module")
def real_core() -> Core:
    return Core()


@pytest.fixture
def core(real_core: Core, monkeypatch: pytest.MonkeyPatch) -> Core:
    monkeypatch.setattr(with_openvino, "_runtime", lambda: real_core)
    monkeypatch.setattr(
        compiled, "milliseconds", lambda runs: {n: 1.0 if "GPU.1" in n else 9.0 for n in runs}
    )
    real_core.used.clear()
    return real_core


def test_the_image_encoder_alone_runs_on_the_device(core: Core) -> None:
    found = engine.load(EDGE, "gpu")
    assert (found.names["image_encoder"], found.dtype) == ("openvino", "float16")
    on_cpu = {name for place, name in core.used if place == "CPU"}
    assert {name for place, name in core.used if place != "CPU"} == {"pixels"}
    assert {"pixels", "sam", "ids"} <= on_cpu  # the CPU's encoder is the reference
    assert ("GPU", "pixels") in core.used


def test_auto_measures_every_device(core: Core) -> None:
    found = engine.load(EDGE, "AUTO", parts=["image_encoder"])
    assert found.dtype == "float16"
    assert found.measured_ms["openvino GPU.1 float16"] == 1.0
    assert {place for place, _ in core.used} == {*core.available_devices}


def test_a_device_that_computes_something_else_is_not_used(
    core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "agreement", lambda *_: 0.99)
    with pytest.raises(CheckpointError, match=r"served as auto on this GPU\.1.*device cpu"):
        engine.load(EDGE, "GPU.1", parts=["image_encoder"])
    assert engine.load(EDGE, "AUTO", parts=["image_encoder"]).dtype != "float16"


def test_a_device_that_is_not_here_and_an_engine_that_it_does_not_run(core: Core) -> None:
    with pytest.raises(CheckpointError, match=r"no NPU here, but CPU, GPU\.0"):
        engine.load(EDGE, "NPU")
    with pytest.raises(CheckpointError, match=r"onnxruntime .* does not run on GPU"):
        engine.load(EDGE, "GPU", engine="onnxruntime")
    with pytest.raises(CheckpointError, match=r"NPU is a device of OpenVINO.*samclip export"):
        engine.load(EDGE, "NPU", engine="torch")
    with pytest.raises(CheckpointError, match="not on 'mps'"):
        engine.load(EDGE, "mps", engine="openvino")

"""The compiled engine on the bundled checkpoint: its choice of precision, its cache, its errors."""

import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from samclip_core import engine
from samclip_core.commands.export import export
from samclip_core.engine import compiled, with_openvino
from samclip_core.engine.base import EngineName, Graph, Network, PromptBatch
from samclip_core.engine.choice import agreement, unpacked
from samclip_core.engine.compiled import CompiledEngine
from samclip_core.errors import CheckpointError
from samclip_core.io import checkpoint
from tests.checkout import sources
from tests.tampered import change_graph, list_again
from tests.tiny import make_tiny_checkpoint

pytestmark = pytest.mark.slow

EDGE = checkpoint.resolve("edge")
ENCODER: tuple[Network, ...] = ("image_encoder",)
DECODER: tuple[Network, ...] = ("mask_decoder",)
RUNTIMES: tuple[EngineName, ...] = ("openvino", "onnxruntime")
GREY = np.full((1, 3, 384, 384), 128, np.uint8), np.array([[384, 256]])


@pytest.fixture(scope="module", params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> EngineName:
    return request.param


@pytest.fixture(scope="module")
def exact(runtime: EngineName) -> CompiledEngine:
    return CompiledEngine(EDGE, "float32", ENCODER, runtime=runtime)


@pytest.fixture
def edge(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EDGE, tmp_path / "edge"))


def assert_same(one: CompiledEngine, other: CompiledEngine) -> None:
    for ours, theirs in zip(one.encode(*GREY), other.encode(*GREY), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def _times(monkeypatch: pytest.MonkeyPatch, milliseconds: dict[str, float]) -> list[list[str]]:
    """Fake the time of each variant, by default 9; return a list of those that were compared."""
    measured = []

    def measure(runs: dict[str, object]) -> dict[str, float]:
        measured.append([*runs])
        return {name: milliseconds.get(name, 9.0) for name in runs}

    monkeypatch.setattr(compiled, "milliseconds", measure)
    return measured


def alone(code: str, **variables: str) -> str:
    """Run a program about the bundled checkpoint, its argument; return what it prints."""
    imports = (
        "import sys; from pathlib import Path; "
        "from samclip_core.engine.compiled import CompiledEngine\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", imports + code, EDGE],
        env={"PYTHONPATH": sources(), **variables},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.parametrize("fastest", RUNTIMES)
def test_the_choice_and_the_graph_are_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fastest: EngineName
) -> None:
    measured = _times(monkeypatch, {f"{fastest} float32": 1.0})
    first = CompiledEngine(EDGE, "auto", ENCODER, tmp_path / "compiled")
    compared = len(measured)
    monkeypatch.setattr(with_openvino, "_prepared", lambda *_: pytest.fail("compiled again"))
    second = CompiledEngine(EDGE, "auto", ENCODER, tmp_path / "compiled")
    assert len(measured) == compared
    assert first.names == second.names == {"image_encoder": fastest}
    assert first.dtype == second.dtype == "float32"
    assert first.measured_ms == second.measured_ms
    assert_same(first, second)


@pytest.mark.parametrize("changed", [{"chosen": "another"}, {"quiet": False, "at": 0.0}, None])
def test_a_choice_that_does_not_hold_is_made_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changed: dict | None
) -> None:
    measured = _times(monkeypatch, {})
    first = CompiledEngine(EDGE, "float32", DECODER, tmp_path / "compiled")
    compared, made = len(measured), first._disk.choice("mask_decoder")
    if changed is None:
        first._disk.forget("mask_decoder")
    else:
        first._disk.choose("mask_decoder", replace(made, **changed))
    CompiledEngine(EDGE, "float32", DECODER, tmp_path / "compiled")
    assert len(measured) == 2 * compared


def test_engines_that_are_loaded_at_once_choose_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured = _times(monkeypatch, {})
    CompiledEngine(EDGE, "float32", DECODER, tmp_path / "alone")
    compared, both, measure = len(measured), threading.Barrier(2), compiled.milliseconds

    def measure_beside(runs: dict) -> dict[str, float]:
        with suppress(threading.BrokenBarrierError):
            both.wait(1)  # the other one would begin meanwhile
        return measure(runs)

    monkeypatch.setattr(compiled, "milliseconds", measure_beside)
    load = partial(CompiledEngine, EDGE, "float32", DECODER, tmp_path / "together")
    with ThreadPoolExecutor(2) as threads:
        first, second = (loading.result() for loading in [threads.submit(load) for _ in range(2)])
    assert len(measured) == 2 * compared
    assert first.names == second.names


def test_a_choice_says_whether_it_was_disturbed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured = _times(monkeypatch, {})
    monkeypatch.setattr(compiled.Watch, "quiet", lambda _: False)
    first = CompiledEngine(EDGE, "float32", DECODER, tmp_path / "compiled")
    assert not first._disk.choice("mask_decoder").quiet
    compared = len(measured)
    CompiledEngine(EDGE, "float32", DECODER, tmp_path / "compiled")
    assert len(measured) == compared
    alone = CompiledEngine(EDGE, "float32", DECODER, tmp_path / "it", runtime="openvino")
    assert alone._disk.choice("mask_decoder").quiet  # nothing was compared


def test_a_choice_that_no_longer_runs_is_made_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _times(monkeypatch, {"onnxruntime float32": 1.0})
    folder = tmp_path / "compiled"
    assert CompiledEngine(EDGE, "float32", DECODER, folder).names["mask_decoder"] == "onnxruntime"
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # its import fails
    assert CompiledEngine(EDGE, "float32", DECODER, folder).names["mask_decoder"] == "openvino"


def test_a_runtime_that_fails_as_it_runs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise NotImplementedError("no kernel")

    monkeypatch.setattr("onnxruntime.InferenceSession.run", failing)
    engine_ = CompiledEngine(EDGE, "float32", ENCODER)
    assert (engine_.names, engine_.measured_ms) == ({"image_encoder": "openvino"}, {})


def test_weights_behind_links_are_copied_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for file in EDGE.iterdir():
        (tmp_path / file.name).symlink_to(file)
    copy, copied = shutil.copy, list[str]()

    def counted(source: Path, target: Path) -> Path:
        copied.append(source.name)
        return copy(source, target)

    monkeypatch.setattr(shutil, "copy", counted)
    linked = CompiledEngine(tmp_path, "float32", ENCODER, runtime="openvino")
    assert copied.count(checkpoint.WEIGHTS) == copied.count(checkpoint.TEXT_WEIGHTS) == 1
    assert_same(linked, CompiledEngine(EDGE, "float32", ENCODER, runtime="openvino"))


def test_each_part_has_its_own_runtime_and_at_most_two_are_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ms = {"openvino float32": 3.0, "onnxruntime float32": 2.0}
    measured = _times(monkeypatch, ms)
    assert CompiledEngine(EDGE, "auto", DECODER).names == {"mask_decoder": "onnxruntime"}
    assert all(len(names) <= 2 for names in measured)
    assert measured[1] == [*ms]
    ms["onnxruntime float32"] = 2.9  # not clearly faster
    both = CompiledEngine(EDGE, "float32", ("mask_decoder", "text_encoder"))
    assert both.names == {"mask_decoder": "openvino", "text_encoder": "openvino"}


@pytest.mark.parametrize(("fastest", "int8"), [("float32", "int8"), ("bfloat16", "int8+bfloat16")])
def test_only_what_can_be_the_fastest_is_compiled(
    monkeypatch: pytest.MonkeyPatch, fastest: str, int8: str
) -> None:
    """Compiling takes most of the first start."""
    floats = dict.fromkeys(("float32", "bfloat16", "float16"), ("f32", "FP32"))
    monkeypatch.setattr(with_openvino, "_FLOATS", floats)  # as if all of them ran everywhere
    monkeypatch.setattr(compiled, "agreement", lambda *_: 1.0)
    _times(monkeypatch, {f"openvino {fastest}": 2.0, f"openvino {int8}": 1.0})
    chosen = CompiledEngine(EDGE, "auto", ENCODER, runtime="openvino")
    assert chosen.dtype == int8
    assert [*chosen.measured_ms] == [f"openvino {x}" for x in ("float32", "bfloat16", int8)]
    assert CompiledEngine(EDGE, "float16", ENCODER, runtime="openvino").dtype == "float16"


def test_what_was_slower_is_released_before_the_next_is_opened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _times(monkeypatch, {"onnxruntime float32": 1.0})
    opened, alive = CompiledEngine._opened, list[weakref.ref[Graph]]()

    def counted(self: CompiledEngine, variant: compiled.Variant) -> Graph:
        assert sum(each() is not None for each in alive) < 2
        graph = opened(self, variant)
        alive.append(weakref.ref(graph))
        return graph

    monkeypatch.setattr(CompiledEngine, "_opened", counted)
    engine_ = CompiledEngine(EDGE, "auto", ENCODER)
    assert len(alive) >= len(engine_.measured_ms)
    assert sum(each() is not None for each in alive) == 1


def test_a_runtime_with_other_results_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _times(monkeypatch, {"onnxruntime float32": 1.0})
    monkeypatch.setattr(compiled, "agreement", lambda *_: 0.999)
    assert CompiledEngine(EDGE, "float32", ENCODER).names == {"image_encoder": "openvino"}
    assert "onnxruntime float32 is wrong on this machine" in caplog.text


def test_a_runtime_that_differs_from_pytorch_is_not_used_in_any_precision(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """OpenVINO mixes up heads and queries of some networks, and was believed."""
    directory = make_tiny_checkpoint(tmp_path / "tiny")
    export(directory)
    run, wrong = with_openvino._Requests.run, [True]

    def rolled(self: Any, *inputs: NDArray) -> list[NDArray[Any]]:
        outputs = run(self, *inputs)
        return [np.roll(output, 1) for output in outputs] if wrong[0] else outputs

    monkeypatch.setattr(with_openvino._Requests, "run", rolled)
    assert CompiledEngine(directory, "auto", ENCODER).names == {"image_encoder": "onnxruntime"}
    assert "openvino float32 is wrong on this machine" in caplog.text
    with pytest.raises(CheckpointError, match="cannot be served as float32"):
        CompiledEngine(directory, "float32", ENCODER, runtime="openvino")
    wrong[0] = False
    CompiledEngine(directory, "float32", ENCODER, runtime="openvino")


@pytest.mark.parametrize("values", [5, ["?"], ["AAAA"] * 3, [None] * 3])
def test_damaged_values_of_pytorch_are_said(values: object) -> None:
    with pytest.raises(CheckpointError, match="values of PyTorch are damaged"):
        unpacked(values, 3)


@pytest.mark.parametrize("missing", RUNTIMES)
def test_one_runtime_is_enough(monkeypatch: pytest.MonkeyPatch, missing: EngineName) -> None:
    found = compiled._runtimes
    monkeypatch.setattr(
        compiled, "_runtimes", lambda *a: [each for each in found(*a) if each.name != missing]
    )
    assert missing not in CompiledEngine(EDGE, "float32").names.values()
    with pytest.raises(CheckpointError, match=f"{missing}.*is not installed"):
        engine.load(EDGE, engine=missing)


def test_runtimes_report_nothing_to_their_makers(tmp_path: Path) -> None:
    """Their telemetry would store an identifier in the home folder."""
    alone(
        "CompiledEngine(Path(sys.argv[1]), parts=['text_encoder'])\n"
        "assert {'onnxruntime', 'openvino'} <= sys.modules.keys()",
        HOME=str(tmp_path),
    )
    assert not [*tmp_path.rglob("*")]


def test_int8_that_a_processor_computes_inexactly_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(with_openvino._FLOATS, "bfloat16", ("bf16", "none"))  # no processor has it
    _times(monkeypatch, {"openvino int8": 1.0})
    monkeypatch.setattr(compiled, "agreement", lambda *_: 1.0)
    assert CompiledEngine(EDGE, "int8", ENCODER).dtype == "int8"
    monkeypatch.setattr(compiled, "agreement", lambda *_: 0.9)
    assert not CompiledEngine(EDGE, "auto", ENCODER).dtype.startswith("int8")
    assert "int8 is wrong on this machine" in caplog.text
    with pytest.raises(CheckpointError, match="cannot be served as int8"):
        CompiledEngine(EDGE, "int8", ENCODER)


def test_int8_that_was_bad_at_the_export_is_not_used(
    edge: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """However exactly this machine repeats it."""
    graphs = checkpoint.graphs(edge)
    graphs[checkpoint.INT8_GRAPH] |= {"cosine": 0.9}
    checkpoint.seal_graphs(edge, 20, graphs)
    _times(monkeypatch, {"openvino int8": 1.0})
    monkeypatch.setattr(compiled, "agreement", lambda *_: 1.0)
    assert not CompiledEngine(edge, "auto", ENCODER, runtime="openvino").dtype.startswith("int8")
    assert "int8 is not used" in caplog.text
    with pytest.raises(CheckpointError, match="cannot be served as int8"):
        CompiledEngine(edge, "int8", ENCODER)


def test_a_stored_graph_that_the_runtime_refuses_is_compiled_again(tmp_path: Path) -> None:
    folder = tmp_path / "compiled"
    first = CompiledEngine(EDGE, "float32", ENCODER, folder, runtime="openvino")
    for path in folder.iterdir():
        first._disk.write(path.name.split("-", 1)[1], b"no graph")
    assert_same(first, CompiledEngine(EDGE, "float32", ENCODER, folder, runtime="openvino"))


def test_a_graph_reads_no_file_outside_its_checkpoint(edge: Path, runtime: EngineName) -> None:
    """Its digest may be right: a stranger may have sealed it."""
    model = onnx.load(edge / "image_encoder.onnx", load_external_data=False)
    (edge.parent / "outside").write_bytes((edge / checkpoint.WEIGHTS).read_bytes())
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../outside"
    onnx.save(model, edge / "image_encoder.onnx")
    list_again(edge)
    with pytest.raises(CheckpointError, match="cannot be served"):
        CompiledEngine(edge, "float32", ENCODER, runtime=runtime)


def test_graphs_with_other_constants_have_another_identity(edge: Path, tmp_path: Path) -> None:
    """Weights and digest stay the same, and every file passes its check."""
    folder = tmp_path / "compiled"
    ours = CompiledEngine(EDGE, "float32", ENCODER, folder)
    change_graph(edge)
    digest = list_again(edge)
    checkpoint.verify(edge)
    assert checkpoint.digest(edge) == checkpoint.digest(EDGE)
    theirs = CompiledEngine(edge, "float32", ENCODER, folder)
    assert (ours.graphs, theirs.graphs) == (checkpoint.graphs_digest(EDGE), digest)
    assert ours.graphs != theirs.graphs
    assert agreement(ours.encode(*GREY)[:3], theirs.encode(*GREY)[:3]) < 0.9
    again = CompiledEngine(EDGE, "float32", ENCODER, folder)  # both are in the folder
    assert agreement(ours.encode(*GREY)[:3], again.encode(*GREY)[:3]) > 0.9999


@pytest.mark.parametrize("also_listed", [False, True])
def test_a_graph_that_is_replaced_after_its_check_is_not_run(
    edge: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    also_listed: bool,
    runtime: EngineName,
) -> None:
    read = compiled.without_links

    @contextmanager
    def overtaken(directory: Path) -> Iterator[Callable[[str], Path]]:
        with read(directory) as path:

            def late(name: str) -> Path:
                change_graph(edge)
                if also_listed:
                    list_again(edge)
                return path(name)

            yield late

    monkeypatch.setattr(compiled, "without_links", overtaken)
    with pytest.raises(CheckpointError, match=r"image_encoder\.onnx is missing or differs"):
        CompiledEngine(edge, "float32", ENCODER, tmp_path / "compiled", runtime=runtime)
    assert not [*(tmp_path / "compiled").iterdir()]


def test_a_part_without_a_graph_is_named(edge: Path) -> None:
    graphs = checkpoint.graphs(edge)
    del graphs["mask_decoder.onnx"]
    checkpoint.seal_graphs(edge, 20, graphs)
    assert CompiledEngine(edge, "float32", ENCODER).graphs == checkpoint.graphs_digest(edge)
    with pytest.raises(CheckpointError, match=r"has no mask_decoder\.onnx.*samclip export"):
        CompiledEngine(edge, "float32", DECODER)


def test_a_damaged_graph_or_weight_is_named(edge: Path) -> None:
    (edge / "mask_decoder.onnx").write_bytes(b"no graph")
    with pytest.raises(CheckpointError, match=r"mask_decoder\.onnx.*samclip export"):
        CompiledEngine(edge, parts=DECODER)
    (edge / checkpoint.WEIGHTS).write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        CompiledEngine(edge, parts=ENCODER)


def test_without_graphs_and_torch_the_error_names_the_export(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(engine.load(tiny_checkpoint).names.values()) == {"torch"}
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match="samclip export"):
        engine.load(tiny_checkpoint)


def test_signals_are_handled_after_engines_have_come_and_gone() -> None:
    """Each OpenVINO runtime installs a stack for signal handlers, and frees it at its end."""
    printed = alone(
        "import os, signal\n"
        "make = lambda: CompiledEngine(Path(sys.argv[1]), 'float32', ('mask_decoder',))\n"
        "first = make()\n"
        "second = make()\n"
        "del first\n"
        "del second\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('handled'))\n"
        "os.kill(os.getpid(), signal.SIGUSR1)"
    )
    assert printed == "handled\n"


def _prompts(points: int) -> PromptBatch:
    """Two prompts, each on its own image."""
    rng = np.random.default_rng(points)
    labels_PN = np.array([[1, 0, -1][:points], [2, 3, 1][:points]], np.int64)
    return PromptBatch(
        np.array([1, 0]),
        rng.uniform(0, 384, (2, points, 2)).astype(np.float32),
        labels_PN,
        rng.standard_normal((2, 1, 192, 192)).astype(np.float32),
        np.array([0, 1], np.float32),
    )


def test_a_faster_decoder_gives_almost_the_same_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = CompiledEngine(EDGE, "float32", DECODER)
    _times(monkeypatch, {"openvino bfloat16": 1.0})
    fast = CompiledEngine(EDGE, "auto", DECODER)
    sam_BDhw = np.random.default_rng(0).standard_normal((2, 128, 48, 48)).astype(np.float16)
    for points in (0, 2, 3):
        expected_PMmm, expected_PM = exact.decode(sam_BDhw, _prompts(points))
        logits_PMmm, iou_PM = fast.decode(sam_BDhw, _prompts(points))
        assert logits_PMmm.dtype == iou_PM.dtype == np.float32
        assert np.mean((logits_PMmm > 0) == (expected_PMmm > 0)) > 0.98
        np.testing.assert_allclose(iou_PM, expected_PM, atol=0.05)


def test_float32_decodes_in_float32_without_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    floats = {"float32": ("f32", "FP32"), "bfloat16": ("f32", "FP32")}  # as if it ran everywhere
    monkeypatch.setattr(with_openvino, "_FLOATS", floats)
    measured = _times(monkeypatch, {"openvino bfloat16": 1.0})
    assert CompiledEngine(EDGE, "float32", DECODER, runtime="openvino").decoder_dtype == "float32"
    assert measured == [["openvino float32"]]
    assert CompiledEngine(EDGE, "int8", DECODER, runtime="openvino").decoder_dtype == "bfloat16"

"""An encoder that is compiled in the background: it answers at once, and with the same outputs."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from samclip_core.engine import compiling
from samclip_core.engine.compiling import CompiledEncoder, on_host
from samclip_core.engine.torch_engine import _encoder
from samclip_core.nn.network import build
from tests.tiny import TINY

with torch.inference_mode():  # as in the engine: compiled code is of such tensors alone
    PIXELS_B3SS = torch.full((2, 3, 4, 4), 7, dtype=torch.uint8)
    SIZES_B2 = torch.tensor([[4, 4]] * 2)
Backend = Callable[[torch.fx.GraphModule, Any], Callable[..., object]]


def encode(pixels_B3SS: Tensor, sizes_B2: Tensor) -> list[Tensor]:
    return [pixels_B3SS.float() + 1, sizes_B2.float()]


def as_it_is(graph: torch.fx.GraphModule, _: Any) -> Callable[..., object]:
    return graph.forward


def wrong(graph: torch.fx.GraphModule, _: Any) -> Callable[..., object]:
    return lambda *inputs: [-output for output in graph.forward(*inputs)]


def fails(graph: torch.fx.GraphModule, _: Any) -> Callable[..., object]:
    raise RuntimeError("no C compiler")


@pytest.fixture(autouse=True)
def own_code(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "unused")
    torch._dynamo.reset()
    with torch.inference_mode(), torch._dynamo.config.patch(recompile_limit=8):
        yield


def compiled() -> None:
    for thread in threading.enumerate():
        if thread.name == "compile":
            thread.join()


@pytest.mark.parametrize(
    ("backend", "milliseconds", "taken"),
    [(as_it_is, 1.0, True), (as_it_is, 3.0, False), (wrong, 1.0, False), (fails, 1.0, False)],
)
def test_compiled_code_is_used_if_it_agrees_and_is_faster(
    monkeypatch: pytest.MonkeyPatch, backend: Backend, milliseconds: float, taken: bool
) -> None:
    measured = {"as it is": 2.0, "compiled": milliseconds}
    monkeypatch.setattr(compiling, "milliseconds", lambda runs: measured)
    encoder = CompiledEncoder(encode, backend)
    for _ in range(2):
        found = on_host(encoder(PIXELS_B3SS, SIZES_B2))
        assert found[0] == pytest.approx(8)
        compiled()
    assert (encoder._chosen[PIXELS_B3SS.shape] is encoder._compiled) == taken


def test_no_batch_waits_for_a_second_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    measured, graphs = {"as it is": 2.0, "compiled": 1.0}, []
    monkeypatch.setattr(compiling, "milliseconds", lambda runs: measured)
    added = [1]

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    def encode(pixels_B3SS: Tensor, sizes_B2: Tensor) -> list[Tensor]:
        return [pixels_B3SS.float() + added[0]]

    encoder = CompiledEncoder(encode, backend)
    encoder(PIXELS_B3SS, SIZES_B2)
    compiled()
    assert encoder._chosen[PIXELS_B3SS.shape] is encoder._compiled
    assert on_host(encoder(PIXELS_B3SS, SIZES_B2))[0] == pytest.approx(8)
    added[0] = 2  # the compiled code has a 1 in it
    for _ in range(2):
        assert on_host(encoder(PIXELS_B3SS, SIZES_B2))[0] == pytest.approx(9)
    assert len(graphs) == 1


def test_more_sizes_of_batches_are_compiled_than_pytorch_keeps_by_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured = {"as it is": 2.0, "compiled": 1.0}
    monkeypatch.setattr(compiling, "milliseconds", lambda runs: measured)
    encoder = CompiledEncoder(encode, "eager")
    for size in range(1, 12):
        encoder(PIXELS_B3SS[:1].expand(size, -1, -1, -1), SIZES_B2[:1].expand(size, -1))
    compiled()
    assert {*encoder._chosen.values()} == {encoder._compiled}


def test_a_batch_does_not_wait_for_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()

    def waits(graph: torch.fx.GraphModule, _: Any) -> Callable[..., object]:
        assert answered.wait(60)
        return graph.forward

    encoder = CompiledEncoder(encode, waits)
    for _ in range(3):
        encoder(PIXELS_B3SS, SIZES_B2)
    assert sum(thread.name == "compile" for thread in threading.enumerate()) == 1
    answered.set()
    compiled()


def test_an_unloaded_model_is_compiled_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights stayed on the GPU until all sizes of its warm-up were compiled."""
    unloaded, graphs = threading.Event(), []
    monkeypatch.setattr(compiling, "milliseconds", lambda runs: {"as it is": 2.0, "compiled": 1.0})

    def waits(graph: torch.fx.GraphModule, _: Any) -> Callable[..., object]:
        graphs.append(graph)
        assert unloaded.wait(60)
        return graph.forward

    encoder = CompiledEncoder(encode, waits)
    for size in (1, 2):
        encoder(PIXELS_B3SS[:size], SIZES_B2[:size])
    del encoder
    unloaded.set()
    compiled()
    assert len(graphs) == 1


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if kind != "radio" else ()) for kind in TINY]
)
def test_the_encoders_of_all_kinds_can_be_compiled(
    kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    measured = {"as it is": 2.0, "compiled": 1.0}
    monkeypatch.setattr(compiling, "milliseconds", lambda runs: measured)
    side = TINY[kind].image_size
    net = build(TINY[kind]).eval().requires_grad_(False)
    encoder = CompiledEncoder(_encoder(net, torch.device("cpu"), "bfloat16"), "eager")
    pixels_B3SS = torch.zeros(2, 3, side, side, dtype=torch.uint8)
    encoder(pixels_B3SS, torch.tensor([[side, side], [side // 2, side]]))
    compiled()
    assert encoder._chosen[pixels_B3SS.shape] is encoder._compiled, caplog.text

"""What a GPU needs of the networks, checked without one."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from samclip_core.engine.torch_engine import TorchEngine
from samclip_core.engine.torch_engine import _memory_checked as _checked
from samclip_core.nn.network import build
from tests.tiny import TINY


def test_encoding_never_waits_for_the_device() -> None:
    """A value read back by the host would stall the queue of a GPU; a fake tensor has none.

    The edge model is an exception: its head crops to the largest image of the batch.
    """
    config = TINY["vit-b"]
    with FakeTensorMode():
        net = build(config).eval().requires_grad_(False)
        pixels_B3SS = torch.zeros(2, 3, config.image_size, config.image_size)
        encoded = net.encode(pixels_B3SS, torch.tensor([[8, 8], [16, 8]]))
    assert encoded.sam_BDhw.shape == (2, config.embed_dim, config.grid, config.grid)


def test_a_device_that_is_not_cuda_gets_its_tensors_without_pinned_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of Apple's and other GPUs; "meta" is a device that computes nothing."""
    engine = TorchEngine(build(TINY["edge"]).to("meta"), None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pytest.fail("pinned"))
    assert engine._moved(np.zeros(2, np.uint8)).device.type == "meta"
    with engine.autocast():  # float32 needs none, which a device may lack
        assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize(
    ("message", "memory"), [("MPS backend out of memory (…)", True), ("no kernel", False)]
)
def test_memory_of_any_device_that_is_used_up_is_a_memory_error(message: str, memory: bool) -> None:
    with pytest.raises(MemoryError if memory else RuntimeError, match=message[:10]), _checked():
        raise RuntimeError(message)

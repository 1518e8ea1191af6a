"""What a GPU needs of the networks, checked without one."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

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

"""What every network promises of batches."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


@torch.inference_mode()
def assert_alone_equals_batch(
    network: Callable[[Tensor, Tensor], Iterable[Tensor]],
    given_B: Tensor,
    sizes_B2: Tensor,
    atol: float = 1e-5,
) -> None:
    """Check that each image gives the same alone as in its slot of the batch."""
    batch = network(given_B, sizes_B2)
    for slot in range(len(given_B)):
        alone = network(given_B[slot : slot + 1], sizes_B2[slot : slot + 1])
        for one, many in zip(alone, batch, strict=True):
            torch.testing.assert_close(one[0], many[slot], atol=atol, rtol=0)

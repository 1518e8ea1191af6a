"""The shapes of a network's tensors, which are compared with a file's before they take memory."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from samclip_core.errors import CheckpointError

if TYPE_CHECKING:
    from torch import nn

MOST_COMPUTED = 2**28
"""Numbers in a network's buffers: files do not have all of them."""


def shapes_of(make: "Callable[[], nn.Module]") -> dict[str, list[int]]:
    """Return the shapes of a module's tensors, for which it takes no memory.

    A small file may state the sizes of a large network. Raises CheckpointError if there is none of
    these sizes.
    """
    import torch

    wrong = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
    try:
        with torch.device("meta"):
            module = make()
        if sum(buffer.numel() for buffer in module.buffers()) > MOST_COMPUTED:
            raise ValueError(f"more than {MOST_COMPUTED:,} numbers in buffers")
        return {key: list(value.shape) for key, value in module.state_dict().items()}
    except (*wrong, AssertionError) as error:
        raise CheckpointError(
            f"no network has the sizes that are stated ({type(error).__name__}: {error}): download "
            "or convert it again"
        ) from error


def compare_shapes(
    file: str,
    stored: Mapping[str, Sequence[int]],
    expected: Mapping[str, Sequence[int]],
    architecture: str,
) -> None:
    """Raise CheckpointError, which names the keys, unless keys and shapes are the same."""
    differences = {
        "missing": sorted(expected.keys() - stored.keys()),
        "unexpected": sorted(stored.keys() - expected.keys()),
        "with another shape": [
            f"{key} {stored[key]} instead of {expected[key]}"
            for key in sorted(stored.keys() & expected.keys())
            if stored[key] != expected[key]
        ],
    }
    named = [
        f"{len(keys)} {kind} ({', '.join(keys[:5]) + (', …' if len(keys) > 5 else '')})"
        for kind, keys in differences.items()
        if keys
    ]
    if named:
        raise CheckpointError(f"{file} does not match {architecture}: keys {'; '.join(named)}")

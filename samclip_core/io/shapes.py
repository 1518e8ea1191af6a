"""A network's tensors: shapes are compared with a file's before they take memory."""

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING

from samclip_core.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor, nn

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


def fill(file: str, module: "nn.Module", tensors: Mapping[str, "Tensor"]) -> None:
    """Load tensors of the right keys and shapes; parts that are left out stay as they are.

    Raises CheckpointError for weights that are no floating-point numbers, or are not finite.
    """
    import torch

    types = torch.float16, torch.bfloat16, torch.float32, torch.float64
    own = {key: value for key, value in module.state_dict().items() if key in tensors}
    weights = {key: value for key, value in own.items() if value.is_floating_point()}
    wrong = [key for key in weights if tensors[key].dtype not in types]
    if not wrong:
        module.load_state_dict(tensors, strict=False)
        # A sum tells it in one pass, without an array of its own.
        wrong = [key for key, value in weights.items() if not isfinite(value.sum())]
    if wrong:
        raise CheckpointError(
            f"{wrong[0]} of {file} has no finite floating-point numbers: download, convert or "
            "train the checkpoint again"
        )

"""Compare the tensors in a file with those that a network expects."""

from collections.abc import Mapping, Sequence

from samclip_core.errors import CheckpointError


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
    found = [f"{len(keys)} {kind} ({_some(keys)})" for kind, keys in differences.items() if keys]
    if found:
        raise CheckpointError(f"{file} does not match {architecture}: keys {'; '.join(found)}")


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:5]) + (", …" if len(keys) > 5 else "")

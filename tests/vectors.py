"""Items with random vectors for collections, models and hostile texts."""

import numpy as np

from services.retrieval.index import Item

D = 8
MODEL, OTHER = "m" * 64, "n" * 64
HOSTILE = (
    "", " ", "\n", '"', "'", "\\", '\\"', '" or "" == "', "' in .pairs or 1", "}, {", ", ",
    "é", "\u2028", "𝄞", "a\0b", "a", '"a": "b"', ": ", ".pairs", "*", "true", "1", "{}", "x" * 5000,
    "-", "+", "(a", "[a",
)  # fmt: skip


def vector(seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=D).astype(np.float32)
    return values / np.linalg.norm(values)


def items(*seeds: int) -> list[Item]:
    return [Item(f"id {seed}", vector(seed), {"seed": str(seed)}) for seed in seeds]

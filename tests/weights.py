"""Seeded random weights with which every part of a network affects its output."""

from collections.abc import Callable

import torch
from torch import nn


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Build a module in evaluation mode, and add noise to parameters that start as constants.

    Position tables start at zero and norms at the identity, so equal results would prove
    nothing about them.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = build()
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.ndim == 1 or not parameter.any():
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()

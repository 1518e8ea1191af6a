"""PHI-S: standardise a teacher's features to mean 0 and variance 1 in every channel.

PHI-S only rotates and scales uniformly, so distances keep their proportions: errors in the
standardised space are proportional to errors in the teacher's. (Ranzinger et al., 2024, "PHI-S:
Distribution Balancing for Label-Free Multi-Teacher Distillation", arXiv 2410.01680.)

B images, D width, N features.
"""

from collections.abc import Iterable
from typing import Self

import torch
from torch import Tensor, nn


class PhiS(nn.Module):
    """``y = H Uᵀ (x - μ) / φ``: U the eigenvectors of the covariance, H a Hadamard matrix over √D.

    Uᵀ separates the variances into the eigenvalues; H, whose entries have equal magnitude, gives
    each channel the same mixture of them; φ is the root of their mean. The module has buffers
    only: it never learns, but is part of a state dict.
    """

    mean_D: Tensor
    rotation_DD: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        """Create the identity; ``fit`` or a state dict replaces it."""
        super().__init__()
        self.register_buffer("mean_D", torch.zeros(width))
        self.register_buffer("rotation_DD", torch.eye(width))
        self.register_buffer("scale", torch.ones(()))

    @classmethod
    def fit(cls, features: Iterable[Tensor]) -> Self:
        """Fit to a stream of batches ``features_ND``, which is read once and not stored.

        Raises ValueError if the features do not vary or no Hadamard matrix of their width is known.
        """
        count, total_D, outer_DD = 0, torch.zeros(()), torch.zeros(())
        for features_ND in features:
            wide_ND = features_ND.double()  # float32 sums of squares lose small variances
            count += len(wide_ND)
            total_D = total_D + wide_ND.sum(dim=0)
            outer_DD = outer_DD + wide_ND.T @ wide_ND
        if not count:
            raise ValueError("no features to standardise: the stream was empty")
        mean_D = total_D / count
        variance_D, axes_DD = torch.linalg.eigh(outer_DD / count - mean_D.outer(mean_D))
        scale = variance_D.clamp(min=0).mean().sqrt()
        if not scale > 0:
            raise ValueError(f"cannot standardise {count} identical features")
        standard = cls(len(mean_D)).to(mean_D.device)
        standard.mean_D.copy_(mean_D)
        standard.rotation_DD.copy_(
            hadamard(len(mean_D)).to(axes_DD) / len(mean_D) ** 0.5 @ axes_DD.T
        )
        standard.scale.copy_(scale)
        return standard

    def forward(self, features_BDhw: Tensor) -> Tensor:
        """Standardise features ``BDhw``, or any other shape whose second dimension is D."""
        centred_BhwD = features_BDhw.movedim(1, -1) - self.mean_D
        return (centred_BhwD @ self.rotation_DD.T / self.scale).movedim(-1, 1)


def hadamard(order: int) -> Tensor:
    """Return a square matrix of ±1 (float64) with orthogonal rows.

    Uses Paley's construction for q + 1, q a prime of the form 4n + 3, and Sylvester's doubling.
    Covers powers of two and the widths in use, such as 384 and 768. Raises ValueError for other
    orders.
    """
    if order == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if order % 4 == 0 and _is_prime(order - 1):
        return _paley(order - 1)
    if order % 2 == 0:
        pair_22 = torch.tensor([[1, 1], [1, -1]], dtype=torch.float64)
        return torch.kron(pair_22, hadamard(order // 2))
    raise ValueError(
        f"no Hadamard matrix of order {order}: expected a width of 2ᵏ or 2ᵏ(q + 1), q a prime of "
        "the form 4n + 3"
    )


def _paley(q: int) -> Tensor:
    """Return ``I + S`` of order q + 1; S is antisymmetric: quadratic residues bordered by ones."""
    numbers_q = torch.arange(q)
    residue_q = torch.full((q,), -1, dtype=torch.float64)
    residue_q[numbers_q[1:] ** 2 % q] = 1
    residue_q[0] = 0
    skew = torch.zeros(q + 1, q + 1, dtype=torch.float64)
    skew[0, 1:], skew[1:, 0] = 1, -1
    skew[1:, 1:] = residue_q[(numbers_q[:, None] - numbers_q) % q]
    return skew + torch.eye(q + 1, dtype=torch.float64)


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % factor for factor in range(2, int(number**0.5) + 1))

"""A dense teacher, such as DINOv2, DINOv3 or C-RADIO, and the student's head for its features.

Features are those of patches. The head serves training only: it is part of a run's states, not of a
checkpoint. PHI-S standardises features: it only rotates and scales uniformly, so distances keep
their proportions, and errors in the standardised space are proportional to errors in the teacher's
(Ranzinger et al., 2024, "PHI-S: Distribution Balancing for Label-Free Multi-Teacher Distillation",
arXiv 2410.01680).

B images, S side of the model frame, L pixels of a resized side, h w grid, N tokens, D width.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from samclip_core.errors import CheckpointError
from samclip_core.io import checkpoint
from samclip_core.io.official import read_state
from samclip_core.nn.clip_model import resize_filter
from samclip_core.nn.clip_tower import resample_over_frame, resize_valid
from samclip_core.nn.network import ENCODER_PARTS, load_net
from samclip_core.nn.radio import RadioEncoder, RadioTower
from samclip_core.nn.vit import PATCH
from training.data.frames import View
from training.distillation.teachers import Frozen, published_view

FORM = "MODEL:FILE"
FORMS = f"{FORM}, or a checkpoint of kind radio"


class DenseTeacher(Frozen):
    """The patch features of a timm model, which resizes pictures to its own input size."""

    model: Any  # nn.Module's attributes are tensors or modules to a type checker
    pixel_mean_311: Tensor
    pixel_std_311: Tensor

    def __init__(self, model: nn.Module) -> None:
        """Take a timm model with its weights; its published configuration has size, mean and std.

        Raises ValueError if it returns no feature maps.
        """
        super().__init__()
        if not hasattr(model, "forward_intermediates"):
            raise ValueError(
                f"timm's {type(model).__name__} returns no feature maps: expected a model with "
                "forward_intermediates, such as vit_base_patch14_dinov2"
            )
        self.model = model
        published: Mapping[str, Any] = resolve_model_data_config(model)
        self.input_size: tuple[int, int] = published["input_size"][1:]
        self.view = published_view(self.input_size, resize_filter(type(model).__name__, published))
        for name in ("mean", "std"):
            value_311 = 255 * torch.tensor(published[name]).view(3, 1, 1)
            self.register_buffer(f"pixel_{name}_311", value_311, False)
        self.freeze()

    @torch.no_grad()
    def forward(self, pixels_B3SS: Tensor, sizes_B2: Tensor) -> Tensor:
        """Return ``dense_BDhw``, the normalised features of the last block over the padded frame.

        The frame has as many cells as the teacher's own map, so that nothing finer is lost.
        """
        pixels_B3LL = resize_valid(pixels_B3SS, sizes_B2, self.input_size, self.view.filter)
        x_B3LL = (pixels_B3LL - self.pixel_mean_311) / self.pixel_std_311
        (dense_BDhw,) = self.model.forward_intermediates(
            x_B3LL, indices=1, norm=True, intermediates_only=True
        )
        cells = max(dense_BDhw.shape[-2:])
        return resample_over_frame(dense_BDhw.float(), sizes_B2, pixels_B3SS.shape[-1], cells)


class RadioTeacher(Frozen):
    """The patches of a checkpoint's RADIO, before the adaptors, at its side for maps."""

    def __init__(self, directory: Path) -> None:
        """Raise CheckpointError if the checkpoint has no RADIO or is damaged."""
        super().__init__()
        config = checkpoint.read_config(directory)
        if config.kind != "radio":
            raise CheckpointError(
                f"the checkpoint {config.name}, of kind {config.kind}, gives no dense features of "
                f"its own: expected {FORMS}"
            )
        net = load_net(directory, ENCODER_PARTS)
        beside = isinstance(net.clip_head, RadioTower)
        encoder = net.clip_head.trunk if beside else net.image_encoder
        assert isinstance(encoder, RadioEncoder)
        encoder.masks = False
        self.encoder, self.view = encoder, View(config.size_of("semantic"))
        self.freeze()

    @torch.no_grad()
    def forward(self, pixels_B3SS: Tensor, sizes_B2: Tensor) -> Tensor:
        """Return ``dense_BDhw`` over the padded frame."""
        tokens_BND = self.encoder(pixels_B3SS, sizes_B2).tokens_BDhw
        cells = pixels_B3SS.shape[-1] // PATCH
        return tokens_BND[:, 1:].mT.unflatten(2, (cells, cells)).float()


def load_dense_teacher(given: str) -> DenseTeacher | RadioTeacher:
    """Load ``given``, MODEL:FILE: timm's name of a model, with or without a tag, and its weights.

    A directory is that of a checkpoint with RADIO. Raises CheckpointError if timm has no such
    model, or if the file cannot be read or does not hold its weights.
    """
    if checkpoint.is_here(Path(given)):
        return RadioTeacher(Path(given))
    name, _, file = given.partition(":")
    weights = {"state_dict": read_state(Path(file))}
    try:
        # Loading as "pretrained" also converts the layout of DINOv2's and DINOv3's own files.
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=weights)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{file} does not hold weights of timm's {name!r} ({' '.join(str(error).split())[:200]}"
            f"): expected {FORM}, a name from timm.list_models() and its published weights"
        ) from error
    del model.pretrained_cfg["state_dict"]  # a second copy
    return DenseTeacher(model)


class PhiS(nn.Module):
    """Standardises features to mean 0 and variance 1 in every channel.

    ``y = H Uᵀ (x - μ) / φ``: U the eigenvectors of the covariance, H a Hadamard matrix over √D.

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


class DenseHead(nn.Module):
    """Tokens of the student's encoder → MLP → the dense teacher's standardised features.

    Two layers as RADIO's adaptors (github.com/NVlabs/RADIO, radio/adaptor_mlp.py). ``standard``,
    the standardisation of the targets, is part of the state because a fit on another machine may
    rotate differently.
    """

    def __init__(self, token_dim: int, standard: PhiS) -> None:
        super().__init__()
        width = len(standard.mean_D)
        self.standard = standard
        self.layers = nn.Sequential(
            nn.Linear(token_dim, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, width)
        )

    def forward(self, tokens_BDhw: Tensor) -> Tensor:
        """Return ``standard_BDhw``, the prediction of the teacher's standardised features."""
        predicted: Tensor = self.layers(tokens_BDhw.movedim(1, -1))
        return predicted.movedim(-1, 1)

"""A dense teacher, such as DINOv2, DINOv3 or C-RADIO, and the student's head for its features.

Features are those of patches.
The head serves training only: it is part of a run's states, not of a checkpoint.

B images, S side of the model frame, L pixels of a resized side, h w grid, N tokens, D width.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
from training.data.crops import View
from training.distillation.standardise import PhiS
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

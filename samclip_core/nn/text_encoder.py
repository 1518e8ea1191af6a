"""Text towers: a sentence encoder (edge), open_clip's, or TIPSv2's.

T texts, N tokens, D width.
"""

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samclip_core.config import TextConfig
from samclip_core.io import checkpoint
from samclip_core.nn.tokenizer import (
    PAD,
    TextTokenizer,
    check_texts,
    of_open_clip,
    of_sentences,
    of_tips,
    stored_tokenizer,
)

BATCH = 64


class TextEncoder(nn.Module):
    """The base class of text towers: embeds texts in batches, as rows of length 1."""

    tokenizer: TextTokenizer
    tokenizer_json: str | None = None  # stored beside the weights if the tower needs it

    @abstractmethod
    def forward(self, ids_TN: Tensor) -> Tensor:
        """Embed token ids: float32 T×D, each row of length 1."""

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embed texts: float32 T×D on the tower's device, each row of length 1.

        Raises InvalidLabels if there are no texts, or an empty one.
        """
        check_texts(texts)
        device = next(self.parameters()).device
        batches = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
        ids = (torch.from_numpy(self.tokenizer(batch)).to(device) for batch in batches)
        return torch.cat([self(ids_TN) for ids_TN in ids])


class SentenceTextEncoder(TextEncoder):
    """BERT as a sentence encoder: transformer → mean over the tokens → centring → length 1.

    ``center_D`` is subtracted from the pooled vector of length 1, because sentence vectors share a
    large common component that is unrelated to the picture.
    """

    center_D: Tensor

    def __init__(self, config: TextConfig, tokenizer_json: str) -> None:
        super().__init__()
        self.tokenizer_json = tokenizer_json
        self.tokenizer = of_sentences(tokenizer_json, config)
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
        pooled_TD = _mean(x_TND, padding_TN)
        return F.normalize(F.normalize(pooled_TD.float(), dim=-1) - self.center_D, dim=-1)


def _mean(x_TND: Tensor, padding_TN: Tensor) -> Tensor:
    kept_TN1 = (~padding_TN)[..., None]
    return (x_TND * kept_TN1).sum(dim=1) / kept_TN1.sum(dim=1)


class TipsTextEncoder(TextEncoder):
    """TIPSv2's text tower: pre-norm transformer → norm → mean over the tokens → length 1.

    Token embeddings are scaled by √D, positions sinusoids; both are computed at conversion.
    """

    def __init__(self, config: TextConfig, tokenizer_json: str) -> None:
        super().__init__()
        self.tokenizer_json = tokenizer_json
        self.tokenizer = of_tips(tokenizer_json)
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
        return F.normalize(_mean(x_TND, padding_TN).float(), dim=-1)


class OpenClipTextEncoder(TextEncoder):
    """The text tower of an open_clip model, with its state-dict keys under ``model.``."""

    def __init__(self, config: TextConfig, tokenizer_json: str | None = None) -> None:
        """Build the tower; a model with a tokenizer of its own needs its JSON."""
        super().__init__()
        # Slow to import, and not needed by a sentence encoder.
        from samclip_core.nn.clip_model import build_model

        self.tokenizer_json = tokenizer_json
        self.tokenizer = of_open_clip(config, tokenizer_json)
        self.model = build_model(config, images=False)

    def forward(self, ids_TN: Tensor) -> Tensor:
        return F.normalize(self.model.encode_text(ids_TN).float(), dim=-1)


def build_text_encoder(config: TextConfig, tokenizer_json: str | None = None) -> TextEncoder:
    """Build a tower with random weights, and with the tokenizer that its checkpoint stores."""
    if config.tower == "open_clip":
        return OpenClipTextEncoder(config, tokenizer_json).eval()
    assert tokenizer_json is not None
    tower = TipsTextEncoder if config.tower == "tips" else SentenceTextEncoder
    return tower(config, tokenizer_json).eval()


def load_text_encoder(directory: Path) -> TextEncoder:
    """Load a checkpoint's text tower, frozen, as float32 on the CPU."""
    config = checkpoint.read_config(directory).text
    make = partial(build_text_encoder, config, stored_tokenizer(directory))
    encoder = checkpoint.load_weights(directory, make, file=checkpoint.TEXT_WEIGHTS)
    return encoder.requires_grad_(False)

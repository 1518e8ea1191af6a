"""What text towers of all families share.

T texts, N tokens, D width.
"""

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from samclip_core.config import TextConfig
from samclip_core.families import TOWERS
from samclip_core.io import checkpoint
from samclip_core.nn.tokenizer import TextTokenizer, check_texts, stored_tokenizer

BATCH = 64


class TextEncoder(nn.Module):
    """The base class of text towers: embeds texts in batches, as rows of length 1."""

    tokenizer: TextTokenizer
    tokenizer_json: str | None = None  # stored beside the weights if the tower needs it
    one_length = True  # of all texts, in tokens

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


def mean_of(x_TND: Tensor, padding_TN: Tensor) -> Tensor:
    """Return the mean over the tokens that are no padding: T×D."""
    kept_TN1 = (~padding_TN)[..., None]
    return (x_TND * kept_TN1).sum(dim=1) / kept_TN1.sum(dim=1)


def build_text_encoder(config: TextConfig, tokenizer_json: str | None = None) -> TextEncoder:
    """Build a tower with random weights, and with the tokenizer that its checkpoint stores."""
    network = TOWERS[config.tower].module("network")
    made: TextEncoder = network.text_encoder(config, tokenizer_json)
    return made.eval()


def load_text_encoder(directory: Path) -> TextEncoder:
    """Load a checkpoint's text tower, frozen, as float32 on the CPU."""
    config = checkpoint.read_config(directory).text
    make = partial(build_text_encoder, config, stored_tokenizer(directory))
    encoder = checkpoint.load_weights(directory, make, file=checkpoint.TEXT_WEIGHTS)
    return encoder.requires_grad_(False)

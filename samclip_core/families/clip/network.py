"""The text towers of open_clip's models. T texts, N tokens, D width."""

from torch import Tensor
from torch.nn import functional as F

from samclip_core.config import TextConfig
from samclip_core.nn.clip_model import build_model
from samclip_core.nn.text_encoder import TextEncoder
from samclip_core.nn.tokenizer import of_open_clip


class OpenClipTextEncoder(TextEncoder):
    """The text tower of an open_clip model, with its state-dict keys under ``model.``."""

    def __init__(self, config: TextConfig, tokenizer_json: str | None = None) -> None:
        """Build the tower; a model with a tokenizer of its own needs its JSON."""
        super().__init__()
        self.tokenizer_json = tokenizer_json
        self.tokenizer = of_open_clip(config, tokenizer_json)
        self.model = build_model(config, images=False)

    def forward(self, ids_TN: Tensor) -> Tensor:
        return F.normalize(self.model.encode_text(ids_TN).float(), dim=-1)


text_encoder = OpenClipTextEncoder

"""The tokenizer of a sentence encoder."""

from tokenizers import Tokenizer

from samclip_core.config import TextConfig
from samclip_core.nn.tokenizer import PAD, TextTokenizer


def of(json: str, config: TextConfig) -> TextTokenizer:
    """Build the tokenizer, which pads ids to the longest text of a batch."""
    tokenizer = Tokenizer.from_str(json)
    tokenizer.enable_truncation(config.max_tokens)
    tokenizer.enable_padding(pad_id=PAD, pad_token="[PAD]")
    return TextTokenizer(tokenizer.to_str())

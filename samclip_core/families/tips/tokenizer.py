"""TIPSv2's tokenizer."""

import string
from pathlib import Path

from samclip_core import guarded
from samclip_core.config import TextConfig
from samclip_core.errors import CheckpointError
from samclip_core.families.tips.sentencepiece import read_sentencepiece
from samclip_core.nn.tokenizer import PAD, TextTokenizer

_SMALL = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def of(json: str, _: TextConfig) -> TextTokenizer:
    """Build the tokenizer, which lowers the case of ASCII's letters alone."""
    return TextTokenizer(json, lambda text: text.translate(_SMALL))


def published(file: Path, config: TextConfig) -> str:
    """Return the JSON of TIPSv2's tokenizer.model, padding and truncation included.

    Raises CheckpointError if it is missing, or if its tokens are not those of the text tower.
    """
    if not file.is_file():
        raise CheckpointError(f"{file.parent} has no {file.name}: download TIPSv2's into it")
    try:
        tokenizer = read_sentencepiece(guarded.read(file))
    except ValueError as error:
        raise CheckpointError(f"{error}: download TIPSv2's {file.name}") from error
    size, padding = tokenizer.get_vocab_size(), tokenizer.id_to_token(PAD)
    if size != config.vocabulary or padding != "<pad>":
        raise CheckpointError(
            f"{file} has {size} tokens, the first {padding!r}, and the text tower expects "
            f"{config.vocabulary} and '<pad>': download TIPSv2's own {file.name}"
        )
    tokenizer.enable_truncation(config.max_tokens)
    tokenizer.enable_padding(length=config.max_tokens, pad_id=PAD, pad_token=padding)
    return tokenizer.to_str()

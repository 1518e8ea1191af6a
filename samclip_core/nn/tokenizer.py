"""Text tokenizers, based on the tokenizers library alone. T texts, N tokens."""

import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from samclip_core.config import TextConfig
from samclip_core.errors import CheckpointError, InvalidLabels
from samclip_core.io import checkpoint

if TYPE_CHECKING:
    from open_clip.tokenizer import SimpleTokenizer

PAD = 0
"""The padding token's id in both kinds of tokenizer."""
_CLIP_WORDS = (
    r"(?i)<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


class TextTokenizer:
    """Tokenizes batches of texts; threads may share one."""

    def __init__(self, json: str, split: Callable[[str], list[str]] | None = None) -> None:
        """Not for direct use: call ``of_sentences``, ``of_clip`` or ``load``."""
        self.json = json
        self._split = split
        self._tokenizer = Tokenizer.from_str(json)

    def __call__(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return ``ids_TN``. Raises InvalidLabels if there are no texts, or an empty one."""
        check_texts(texts)
        if self._split is None:
            encoded = self._tokenizer.encode_batch(list(texts))
        else:
            words = [self._split(text) for text in texts]
            encoded = self._tokenizer.encode_batch(words, is_pretokenized=True)
        return np.array([text.ids for text in encoded], np.int64)


def check_texts(texts: Sequence[str]) -> None:
    """Raise InvalidLabels if there are no texts, or an empty one."""
    if not texts:
        raise InvalidLabels("no texts to embed: give at least one")
    empty = [index for index, text in enumerate(texts) if not text.strip()]
    if empty:
        raise InvalidLabels(f"text {empty[0]} is empty: give every text at least one word")


def load(directory: Path) -> TextTokenizer:
    """Load the tokenizer of a checkpoint. Raises CheckpointError.

    An open_clip tower's tokenizer is stored with its exported graphs; without graphs, open_clip
    provides it.
    """
    config = checkpoint.read_config(directory).text
    if config.tower == "sentence":
        return of_sentences(checkpoint.read_file(directory, checkpoint.TOKENIZER).decode(), config)
    if checkpoint.CLIP_TOKENIZER in checkpoint.graphs(directory):
        json = checkpoint.read_graph(directory, checkpoint.CLIP_TOKENIZER).decode()
        return TextTokenizer(json, words_for_clip)
    import open_clip

    return of_clip(open_clip.get_tokenizer(config.model))


def of_sentences(json: str, config: TextConfig) -> TextTokenizer:
    """Build a sentence encoder's tokenizer, which pads ids to the longest text of a batch."""
    tokenizer = Tokenizer.from_str(json)
    tokenizer.enable_truncation(config.max_tokens)
    tokenizer.enable_padding(pad_id=PAD, pad_token="[PAD]")
    return TextTokenizer(tokenizer.to_str())


def of_clip(theirs: "SimpleTokenizer") -> TextTokenizer:
    """Build a tokenizer with the tokens of open_clip's, in time linear in a text's length.

    open_clip's tokenizer takes time quadratic in a word's length, 0.7 s for 2,000 letters, and its
    cache is unbounded. Raises CheckpointError if ``theirs`` does not clean texts as CLIP does.
    """
    if theirs.clean_fn.__name__ != "_clean_lower" or theirs.reduction_fn is not None:
        raise CheckpointError(
            f"open_clip's tokenizer cleans texts with {theirs.clean_fn.__name__}, expected CLIP's "
            "own _clean_lower: use for example ViT-B-32 or ViT-L-14"
        )
    start, end = (theirs.decoder[token] for token in (theirs.sot_token_id, theirs.eot_token_id))
    tokenizer = Tokenizer(
        models.BPE(theirs.encoder, list(theirs.bpe_ranks), end_of_word_suffix="</w>")
    )
    tokenizer.add_special_tokens([theirs.decoder[token] for token in theirs.all_special_ids])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        f"{start} $A {end}",
        special_tokens=[(start, theirs.sot_token_id), (end, theirs.eot_token_id)],
    )
    tokenizer.enable_truncation(theirs.context_length)
    tokenizer.enable_padding(length=theirs.context_length, pad_id=PAD)
    return TextTokenizer(tokenizer.to_str(), words_for_clip)


def words_for_clip(text: str) -> list[str]:
    """Clean a text (encodings, HTML entities, white space, case) and split it as CLIP does.

    The tokenizers library could split as well, but uses an older version of Unicode.
    """
    import ftfy  # a sentence encoder needs neither
    import regex

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return regex.findall(_CLIP_WORDS, " ".join(text.split()).lower())

"""Text tokenizers, based on the tokenizers library alone. T texts, N tokens."""

import html
import string
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from samclip_core import guarded
from samclip_core.config import TextConfig
from samclip_core.errors import CheckpointError, InvalidLabels
from samclip_core.families import TOWERS
from samclip_core.io import checkpoint

if TYPE_CHECKING:
    from open_clip.tokenizer import SimpleTokenizer

PAD = 0
"""The padding token's id in a sentence encoder's and in CLIP's tokenizer."""
_NO_PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))
_CLIP_WORDS = (
    r"(?i)<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


class TextTokenizer:
    """Tokenizes batches of texts; threads may share one."""

    def __init__(
        self, json: str, clean: Callable[[str], Any] | None = None, split: bool = False
    ) -> None:
        """Not for direct use: call ``load``, or ``of`` of a family's module.

        ``clean`` returns a text's words if ``split``, otherwise a text.
        """
        self.json = json
        self._clean = clean
        self._split = split
        self._tokenizer = Tokenizer.from_str(json)

    def __call__(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return ``ids_TN``. Raises InvalidLabels if there are no texts, or an empty one."""
        check_texts(texts)
        cleaned = list(map(self._clean, texts)) if self._clean else list(texts)
        encoded = self._tokenizer.encode_batch(cleaned, is_pretokenized=self._split)
        if empty := [index for index, text in enumerate(encoded) if not any(text.attention_mask)]:
            raise InvalidLabels(f"text {empty[0]} has no visible character: give it a word")
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

    CLIP's own tokenizer is stored with the exported graphs; without graphs, open_clip provides it.
    """
    config, stored = checkpoint.read_config(directory).text, stored_tokenizer(directory)
    if config.tower != "open_clip":
        own: TextTokenizer = TOWERS[config.tower].module("tokenizer").of(stored, config)
        return own
    if not stored and checkpoint.CLIP_TOKENIZER in checkpoint.graphs(directory):
        path = checkpoint.verified_graph(directory, checkpoint.CLIP_TOKENIZER)
        return TextTokenizer(guarded.read(path).decode(), words_for_clip, split=True)
    return of_open_clip(config, stored)


def stored_tokenizer(directory: Path) -> str | None:
    """Return the content of a checkpoint's tokenizer.json, or None if it has CLIP's tokenizer."""
    config = checkpoint.read_config(directory).text
    if config.tower != "open_clip" or own_tokenizer(config):
        return checkpoint.read_file(directory, checkpoint.TOKENIZER).decode()
    return None


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
    return TextTokenizer(tokenizer.to_str(), words_for_clip, split=True)


def words_for_clip(text: str) -> list[str]:
    """Clean a text (encodings, HTML entities, white space, case) and split it as CLIP does.

    The tokenizers library could split as well, but uses an older version of Unicode.
    """
    import regex  # a sentence encoder does not need it

    return regex.findall(_CLIP_WORDS, _one_line(text).lower())


def _one_line(text: str) -> str:
    import ftfy  # a sentence encoder does not need it

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def _canonical(text: str) -> str:
    """Remove punctuation and capitals, as SigLIP does (big_vision's ``canonicalize_text``)."""
    return " ".join(_one_line(text).translate(_NO_PUNCTUATION).lower().split())


_CLEAN = {"whitespace": _one_line, "canonicalize": _canonical}


def own_tokenizer(config: TextConfig) -> dict[str, Any] | None:
    """Return the text_cfg of an open_clip model whose tokenizer is not CLIP's, otherwise None."""
    text: dict[str, Any] = config.open_clip["model_cfg"]["text_cfg"] if config.open_clip else {}
    return text if text.get("hf_tokenizer_name") else None


def of_open_clip(config: TextConfig, json: str | None = None) -> TextTokenizer:
    """Build the tokenizer of an open_clip model; ``json`` is that of ``published_tokenizer``.

    Raises CheckpointError if the model is unknown, or if ``json`` is missing.
    """
    if json is not None:
        options = (own_tokenizer(config) or {}).get("tokenizer_kwargs", {})
        if (clean := str(options.get("clean", "whitespace"))) not in _CLEAN:
            raise CheckpointError(
                f"config.json: the tokenizer cleans texts by {clean!r}, expected "
                f"{' or '.join(_CLEAN)}: convert the checkpoint again"
            )
        return TextTokenizer(json, _CLEAN[clean])
    from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, SimpleTokenizer  # slow to import

    from samclip_core.nn.clip_model import description

    text = description(config)["model_cfg"]["text_cfg"]
    if text.get("hf_tokenizer_name"):
        raise CheckpointError(
            f"{config.model} has a tokenizer of its own, {text['hf_tokenizer_name']}: convert or "
            "train the checkpoint from its published files"
        )
    length = text.get("context_length", DEFAULT_CONTEXT_LENGTH)
    if options := text.get("tokenizer_kwargs", {}):
        return of_clip(SimpleTokenizer(context_length=length, **options))
    return _clips(length)


@cache
def _clips(length: int) -> TextTokenizer:
    """Return CLIP's own tokenizer, which takes half a second to make."""
    from open_clip.tokenizer import SimpleTokenizer

    return of_clip(SimpleTokenizer(context_length=length))


def published_tokenizer(config: TextConfig, folder: Path) -> str | None:
    """Return the JSON of an open_clip model's own tokenizer, padding and truncation included.

    Reads tokenizer.json and tokenizer_config.json, which ``folder`` has from the model's page. None
    if the model uses CLIP's tokenizer. Raises CheckpointError if a file is missing, or if open_clip
    does more to the tokens than this program does.
    """
    text = own_tokenizer(config)
    if text is None:
        return None
    options = text.get("tokenizer_kwargs", {})
    if (
        text.get("tokenizer_mode")
        or options.keys() - {"clean"}
        or (options.get("clean", "whitespace") not in _CLEAN)
    ):
        raise CheckpointError(
            f"the tokenizer of {config.model} has the options {options}, which are not supported: "
            "use for example a SigLIP, a MobileCLIP or one of CLIP's own models"
        )
    try:
        tokenizer = Tokenizer.from_str(guarded.read(folder / "tokenizer.json").decode())
        padding = guarded.read_json(folder / "tokenizer_config.json")["pad_token"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{config.model} has a tokenizer of its own: download tokenizer.json and "
            f"tokenizer_config.json of {text['hf_tokenizer_name']} into {folder} ({error})"
        ) from error
    token = padding if isinstance(padding, str) else padding["content"]
    length = text["context_length"]
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=tokenizer.token_to_id(token), pad_token=token)
    return tokenizer.to_str()

"""Tokenizers of checkpoints: their limits and errors."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest

from samclip_core.config import TextConfig
from samclip_core.errors import CheckpointError
from samclip_core.io import checkpoint
from samclip_core.nn import tokenizer
from samclip_core.nn.tokenizer import PAD
from tests.tiny import TINY

LONGEST = TINY["edge"].text.max_tokens


@pytest.fixture(scope="module")
def sentences(tiny_checkpoint: Path) -> tokenizer.TextTokenizer:
    return tokenizer.load(tiny_checkpoint)


@pytest.fixture(scope="module")
def clip() -> tokenizer.TextTokenizer:
    return tokenizer.of_clip(open_clip.SimpleTokenizer())


def test_sentences_are_padded_to_the_longest_of_a_batch(sentences: tokenizer.TextTokenizer) -> None:
    ids_TN = sentences(["the dog", "a photo of the dog"])
    alone_1N = sentences(["the dog"])
    assert ids_TN.dtype == np.int64
    assert ids_TN.shape == (2, 7)
    np.testing.assert_array_equal(ids_TN[0], [*alone_1N[0], *[PAD] * 3])


def test_sentences_are_cut_at_the_longest_that_the_tower_reads(
    sentences: tokenizer.TextTokenizer,
) -> None:
    assert sentences(["dog " * 1000]).shape == (1, LONGEST)


def test_clips_texts_have_one_length_and_end_with_its_last_token(
    clip: tokenizer.TextTokenizer,
) -> None:
    ids_TN = clip(["dog", "dog " * 1000])
    assert ids_TN.shape == (2, 77)
    assert ids_TN[1, -1] == ids_TN[0].max() == 49407
    assert (ids_TN[0, 3:] == PAD).all()


def test_what_was_written_down_gives_the_same_tokens(clip: tokenizer.TextTokenizer) -> None:
    again = tokenizer.TextTokenizer(clip.json, tokenizer.words_for_clip, split=True)
    texts = ["a dog's photo", "&lt;end_of_text&gt; 犬", "x" * 500]
    np.testing.assert_array_equal(again(texts), clip(texts))


def test_letters_are_not_merged_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip's Python loop takes quadratic time in a word's length."""
    theirs = open_clip.SimpleTokenizer()

    def slow(self: object, word: str) -> str:
        raise AssertionError(f"open_clip's loop got a word of {len(word)} letters")

    monkeypatch.setattr(open_clip.SimpleTokenizer, "bpe", slow)
    assert tokenizer.of_clip(theirs)(["ab" * 1000]).shape == (1, 77)


@pytest.mark.parametrize("options", [{"clean": "canonicalize"}, {"reduction_mask": "shuffle"}])
def test_another_way_to_clean_texts_is_refused(options: dict[str, str]) -> None:
    with pytest.raises(CheckpointError, match="ViT-L-14"):
        tokenizer.of_clip(open_clip.SimpleTokenizer(**options))


def test_before_an_export_an_open_clip_towers_tokens_are_open_clips(
    tiny_checkpoint: Path, clip: tokenizer.TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(TINY["edge"], text=TextConfig(tower="open_clip", model="ViT-B-32"))
    monkeypatch.setattr(checkpoint, "read_config", lambda _: config)
    np.testing.assert_array_equal(tokenizer.load(tiny_checkpoint)(["a dog"]), clip(["a dog"]))


@pytest.mark.parametrize("clean", ["whitespace", "canonicalize"])
def test_texts_are_cleaned_as_by_open_clip(clean: str) -> None:
    theirs = open_clip.tokenizer.get_clean_fn(clean)
    for text in ("  A_dog's\nphoto &amp;amp; MORE!  ", "Ünïcödé “quotes” – 犬", "{}", "x_1 -- y"):
        assert tokenizer._CLEAN[clean](text) == theirs(text)

"""Any text gives the same tokens as open_clip's tokenizer."""

import numpy as np
import open_clip
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from samclip_core.nn import tokenizer

PLAIN = open_clip.SimpleTokenizer()
FAST = tokenizer.of_clip(open_clip.SimpleTokenizer())

few_letters = st.text(alphabet="abcdeinrst", max_size=400)  # long words, many merges
sentences = st.lists(st.text(max_size=20), max_size=100).map(" ".join)


@given(text=st.text(max_size=200) | few_letters | sentences)
def test_tokens_are_those_of_open_clip(text: str) -> None:
    assume(text.strip())
    PLAIN.cache.clear()
    PLAIN.cache.update({token: token for token in ("<start_of_text>", "<end_of_text>")})
    np.testing.assert_array_equal(FAST([text]), PLAIN([text]))


@pytest.mark.parametrize(
    "text",
    ["a", "Don't <start_of_text> & <end_of_text>", "internationalization " * 90, "犬と猫" * 40],
)
def test_tokens_of_texts_with_something_special(text: str) -> None:
    np.testing.assert_array_equal(FAST([text]), PLAIN([text]))

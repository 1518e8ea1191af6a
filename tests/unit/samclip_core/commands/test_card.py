"""Licences in the YAML of a model card."""

from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from samclip_core.commands.card import described
from samclip_core.config import VIT_B
from samclip_core.families import mobile_sam
from samclip_core.families.sam import SAM_B

PAIR = replace(VIT_B, kind="pair")


def card(*licences: str, parts: int) -> ModelCard:
    published = [{"address": "hf://a/b@1", "licence": licence} for licence in licences]
    sources = {str(part): {} for part in range(parts)}
    return ModelCard(described("# x\n", PAIR, {"published": published, "sources": sources}))


@pytest.mark.parametrize(
    ("licences", "parts", "stated", "name"),
    [
        (["mit", "MIT"], 2, "mit", None),
        (["mit"], 2, "other", "mit-and-other"),
        ([SAM_B.licence, mobile_sam.FILE.licence, "apache-2.0"], 3, "apache-2.0", None),
        (["MIT (research only)"], 1, "other", "mit-research-only"),
        (["mit", "許可"], 2, "other", "mit-and-other"),
        (["許可"], 1, "other", None),
        ([], 2, "other", None),
    ],
)
def test_a_licence_is_stated_only_if_it_is_that_of_all_parts(
    licences: list[str], parts: int, stated: str, name: str | None
):
    about = card(*licences, parts=parts).data
    assert (about.license, about.license_name) == (stated, name)
    assert about.base_model == (["a/b"] if licences else None)


def test_a_licence_is_one_line_of_the_card():
    assert "- mit\\u000a## Use: hf://a/b@1\n" in card("mit\n## Use", parts=1).content

import json
from pathlib import Path

import pytest
import yaml

from samclip_core.io import checkpoint
from tests.tiny import make_tiny_checkpoint
from training.results.card import complete
from training.results.tables import figure_table, table


def test_counts_are_no_percentages() -> None:
    rows = figure_table({"camvid_miou": 0.25, "camvid_photographs": 26}).splitlines()
    assert rows[2:] == ["| camvid miou | 25.0% |", "| camvid photographs | 26 |"]


def test_a_table_has_a_line_for_its_head_a_rule_and_every_row() -> None:
    assert table(["a", "b"], [["1", "2"], ["3", "4"]]) == (
        "| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |\n"
    )


@pytest.mark.parametrize(
    ("part", "said"), [("report", "two thirds of the validation sets"), ("all", "validation sets")]
)
def test_a_card_says_what_its_figures_are_of(tmp_path: Path, part: str, said: str) -> None:
    directory = make_tiny_checkpoint(tmp_path / "own")
    (directory / checkpoint.LINEAGE).write_text('{"teachers": {}, "data": {"camvid": ""}}')
    checkpoint.seal(directory)
    digest = complete(directory, {"camvid_miou": 0.25}, part)
    assert digest == checkpoint.digest(directory)
    lineage = json.loads(checkpoint.read_file(directory, checkpoint.LINEAGE))
    assert (lineage["metrics"], lineage["part"]) == ({"camvid_miou": 0.25}, part)
    card = checkpoint.read_file(directory, checkpoint.CARD).decode()
    assert said in card
    assert "are not zero-shot" in card
    _, front, text = card.split("---\n", 2)  # the hub reads it
    about = yaml.safe_load(front)
    assert (about["license"], about["library_name"]) == ("apache-2.0", "samclip")
    assert about["pipeline_tag"] == "mask-generation"
    assert "zero-shot-image-classification" in about["tags"]
    assert text.startswith("\n# ")
    assert "Apache-2.0" in text


def test_a_card_of_official_teachers_says_nothing_of_the_edge(tmp_path: Path) -> None:
    directory = make_tiny_checkpoint(tmp_path / "own", "vit-b")
    origins = {"clip": "clip.bin 12ab", "clip_model": "ViT-L-14", "sam": "sam.pth 34cd"}
    lineage = {"teachers": origins, "data": {"cc12m": "", "sa1b": ""}}
    (directory / checkpoint.LINEAGE).write_text(json.dumps(lineage))
    checkpoint.seal(directory)
    complete(directory, {"coco_multi_box_miou": 0.6}, "report")
    card = checkpoint.read_file(directory, checkpoint.CARD).decode()
    assert not [word for word in ("1,000", "EfficientNet", "MiniLM", "imagen200") if word in card]
    assert "knows what its CLIP teacher knows" in card
    assert "Photographs of cc12m, sa1b." in card
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "other"

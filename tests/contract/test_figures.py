"""The figures and the licence in the documents, model card and API are those of one source."""

import json
import re

from samclip_core.families.edge import LICENCE
from services.gateway import openapi
from tests.checkout import ROOT

CHECKPOINT = ROOT / "samclip_core/checkpoints/edge"
EDGE_PAGE = (ROOT / "docs/edge.md").read_text()
CARD = (CHECKPOINT / "README.md").read_text()
RESULTS = (ROOT / "training/RESULTS.md").read_text()
SETS = ("coco_multi", "labelmefacade", "camvid")
ROWS = {
    "one box": ("coco_multi_box_miou", "bsds500_box_miou"),
    "one point": ("coco_multi_point_best_of_3_miou", "bsds500_point_best_of_3_miou"),
    "classification by name": ("caltech101_top1", "imagen200_top1"),
    "text to image": ("coco_multi_text_to_image_r5",),
    "semantic segmentation": tuple(f"{name}_semantic_two_heads_miou" for name in SETS),
}
"""The figures of a row of the table in docs/edge.md, by the beginning of the row."""
WAYS = {
    "one head, served": "",
    "one head, paper": "_paper",
    "both heads, served": "_two_heads",
}
"""What is between the set's name and the mean IoU in the name of a figure, by row of RESULTS."""


def cells(text: str, row: str) -> list[str]:
    """Return the cells of the only row of a table that begins so."""
    (found,) = re.findall(rf"^\| {re.escape(row)}.*\|$", text, re.MULTILINE)
    return [cell.strip() for cell in found.strip("|").split("|")]


def numbers(cell: str) -> list[str]:
    return re.findall(r"\d+\.\d+", cell)


def card() -> dict[str, str]:
    rows = re.findall(r"^\| ([a-z0-9 ]+) \| (\d+\.\d)% \|$", CARD, re.MULTILINE)
    return {name.replace(" ", "_"): value for name, value in rows}


def one_head() -> list[str]:
    """Return the mIoU of one head on each of ``SETS``, as RESULTS has them."""
    names = ("COCO panoptic, 60", "LabelMeFacade, 120", "CamVid, 26")
    return [numbers(cells(RESULTS, name)[3])[0] for name in names]


def semantic() -> dict[str, str]:
    """Return every mean IoU of the maps, by the names of ``samclip eval``, as RESULTS has them."""
    found = {}
    for row, suffix in WAYS.items():
        for rule in ("miou", "miou_union"):
            values = numbers(" ".join(cells(RESULTS, f"{row}, {rule} |")[1:]))
            names = [f"{name}_semantic{suffix}_{rule}" for name in SETS]
            found |= zip(names, values, strict=True)
    return found


def test_the_card_has_the_measured_figures() -> None:
    """Maps have been measured again since the training, which had no attention of SAM's."""
    metrics = json.loads((CHECKPOINT / "lineage.json").read_text())["metrics"]
    expected = {name: f"{100 * value:.1f}" for name, value in metrics.items()}
    assert card() == expected | semantic()


def test_results_agree_about_maps() -> None:
    """Both heads are as at the end of the training; the claims have the figures of the table."""
    metrics = json.loads((CHECKPOINT / "lineage.json").read_text())["metrics"]
    for name, one in zip(SETS, one_head(), strict=True):
        both = f"{name}_semantic_two_heads_miou"
        assert semantic()[both] == f"{100 * metrics[both]:.1f}"
        assert semantic()[f"{name}_semantic_miou"] == one


def test_the_page_of_edge_has_the_figures_of_the_card() -> None:
    for row, names in ROWS.items():
        assert numbers(cells(EDGE_PAGE, row)[2]) == [card()[name] for name in names], row
    assert numbers(cells(EDGE_PAGE, "semantic segmentation")[3]) == one_head()


def test_the_page_of_edge_has_the_figures_of_clicks() -> None:
    clicks = [numbers(cells(RESULTS, f"{name}, ")[1])[0] for name in ("BSDS500, 65", "COCO, 76")]
    assert numbers(cells(EDGE_PAGE, "clicks until")[2]) == clicks


def test_the_licence_is_the_same_everywhere() -> None:
    said = " ".join(LICENCE.split())
    for text in (EDGE_PAGE, CARD, openapi.document()["info"]["description"]):
        assert said in " ".join(text.split())

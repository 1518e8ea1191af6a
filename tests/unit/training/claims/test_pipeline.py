"""The two-model pipeline paints the names of cut-out masks, and is compared with one model."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from samclip_core.config import EDGE
from samclip_core.io.image import ImageLimits
from tests.photographs import COLOURS, Drawing, draw, outlined, png, write_classes, write_shard
from tests.public_sets import WRITERS
from training.claims import pipeline
from training.claims.pipeline import GREY, cut_out, paint
from training.evaluation.layouts import LabelledSet, Mapped

NAMES = {1: "red", 2: "green", 3: "blue"}
COLOUR_LD = np.eye(3, dtype=np.float32)


class ColourBlindToPlaces:
    """A model that knows the drawings' masks, and embeds a picture as its mean colour."""

    config = EDGE
    limits = ImageLimits()

    def __init__(self, drawings: Sequence[Drawing]) -> None:
        self.drawings = drawings

    def encode(self, image_HW3: np.ndarray) -> np.ndarray:
        return image_HW3

    prepare = encode

    def encode_batch(self, batch: Sequence[np.ndarray]) -> list[np.ndarray]:
        assert len(batch) <= pipeline.CUTS_AT_ONCE
        return list(batch)

    def embed_image(self, image_HW3: np.ndarray) -> np.ndarray:
        mean_3 = image_HW3.reshape(-1, 3).mean(axis=0) - GREY
        return np.asarray(mean_3 / np.linalg.norm(mean_3), np.float32)

    def embed_labels(self, labels: Sequence[str]) -> np.ndarray:
        return COLOUR_LD[[*map([*NAMES.values()].index, labels)]]

    def _drawing(self, image_HW3: np.ndarray) -> Drawing:
        return next(d for d in self.drawings if np.array_equal(d.image_HW3, image_HW3))

    def segment_everything(self, image_HW3: np.ndarray) -> list[SimpleNamespace]:
        return [SimpleNamespace(mask_HW=mask) for mask in self._drawing(image_HW3).masks]

    def segment_text(
        self, image_HW3: np.ndarray, labels: list[str], refine: bool
    ) -> SimpleNamespace:
        """Return the correct map with both heads, and the first label everywhere with one."""
        right_HW = self._drawing(image_HW3).labels_HW.astype(int) - 1
        return SimpleNamespace(label_map_HW=right_HW if refine else np.zeros_like(right_HW))


def test_a_cut_is_the_masks_box_with_its_surroundings_kept_or_grey() -> None:
    image_HW3 = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    mask_HW = np.zeros((4, 5), np.bool_)
    mask_HW[1, 2] = mask_HW[2, 3] = True
    np.testing.assert_array_equal(cut_out(image_HW3, mask_HW, "kept"), image_HW3[1:3, 2:4])
    grey_HW3 = cut_out(image_HW3, mask_HW, "grey")
    np.testing.assert_array_equal(grey_HW3[[0, 1], [0, 1]], image_HW3[[1, 2], [2, 3]])
    assert (grey_HW3[[0, 1], [1, 0]] == GREY).all()


def test_later_masks_lie_on_top_and_gaps_go_to_the_nearest() -> None:
    under_HW = np.zeros((1, 7), np.bool_)
    under_HW[0, :4] = True
    over_HW = np.zeros((1, 7), np.bool_)
    over_HW[0, 1] = over_HW[0, 6] = True
    painted_HW = paint([under_HW, over_HW], [5, 6])
    assert painted_HW.tolist() == [[5, 6, 5, 5, 5, 6, 6]]


def test_without_masks_the_whole_picture_has_one_label() -> None:
    image_HW3 = np.full((6, 8, 3), COLOURS[2], np.uint8)
    nothing = Drawing(image_HW3, np.zeros((6, 8), np.uint8))
    answered = pipeline.pipeline(ColourBlindToPlaces([nothing]), COLOUR_LD, "kept", image_HW3)
    assert answered[1] == 1
    assert (answered[0] == 1).all()


def test_all_procedures_are_measured_on_the_same_photographs() -> None:
    drawings = [draw(seed) for seed in range(2)]
    pictures = [
        Mapped(partial(bytes, png(d.image_HW3)), partial(np.array, d.labels_HW)) for d in drawings
    ]
    rows = pipeline.measure(ColourBlindToPlaces(drawings), LabelledSet("drawings", NAMES, pictures))
    *piped, one, two = rows.values()
    assert [row["semantic_miou"] for row in (*piped, two)] == [1, 1, 1]
    assert one["semantic_miou"] < 0.2
    assert one["semantic_miou_low"] <= one["semantic_miou"] <= one["semantic_miou_high"]
    assert [row["encodes"] for row in rows.values()] == [4, 4, 1, 1]
    assert all(row["seconds"] > 0 for row in rows.values())


def test_the_command_prints_a_row_per_procedure(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shard(tmp_path / "camvid/val-0.tar", {"0": outlined(draw(0))})
    write_classes(tmp_path / "camvid", {1: "dog", 2: "cat", 3: "grass"})
    given = {"--checkpoint": tiny_checkpoint, "--root": tmp_path, "--set": "camvid"}
    assert pipeline.main([str(word) for pair in given.items() for word in pair]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "%" in line]
    names = [row.split(" | ")[0].removeprefix("| ") for row in rows]
    assert names[-2:] == ["one head", "two heads"]
    assert len(names) == 4


def test_a_public_set_and_a_pair_are_measured(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    WRITERS["ade20k"](tmp_path)
    given = {"--checkpoint": tiny_checkpoint, "--pair": tiny_checkpoint, "--root": tmp_path}
    given["--set"] = "ade20k"
    assert pipeline.main([str(word) for pair in given.items() for word in pair]) == 0
    assert len([line for line in capsys.readouterr().out.splitlines() if "%" in line]) == 4


def test_the_pairs_masks_and_words_are_the_pairs() -> None:
    """The merged model knows nothing of the drawings; the pair names each mask rightly."""
    drawings = [draw(0)]
    blind = SimpleNamespace(embed_labels=lambda labels: None)
    procedures = pipeline.procedures(blind, [*NAMES.values()], ColourBlindToPlaces(drawings))
    painted_HW, encodes = procedures["SAM everything + CLIP cuts, surroundings kept"](
        drawings[0].image_HW3
    )
    right_HW = drawings[0].labels_HW.astype(int) - 1
    assert encodes == 4
    assert (painted_HW == right_HW)[right_HW >= 0].all()

"""A head of one's own answers from a picture's encoding, and is found by its specification."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from samclip_core import Head, SamClip
from samclip_core.answers.head import check
from samclip_core.answers.own import name_of, open_head
from samclip_core.errors import HeadError
from tests import own_heads

PICTURE_HW3 = np.full((48, 64, 3), (200, 30, 30), np.uint8)


def test_it_answers_in_one_process_with_texts_and_in_steps(tiny_model: SamClip) -> None:
    closest = own_heads.Closest()
    answer = tiny_model.ask(PICTURE_HW3, closest, closest.Parameters(words=["a", "b"]))
    scores = {one.label: one.similarity for one in tiny_model.classify(PICTURE_HW3, ["a", "b"])}
    assert answer["word"] == max(scores, key=scores.__getitem__)
    assert answer["cosine"] == pytest.approx(max(scores.values()), abs=1e-5)

    parts = own_heads.Parts()
    parts.load(tiny_model)
    answer = tiny_model.ask(PICTURE_HW3, parts)
    assert answer["parts"][0]["mask"].sum() == 24 * 64


def test_an_answer_is_a_dictionary(tiny_model: SamClip) -> None:
    faulty = own_heads.Faulty()
    with pytest.raises(TypeError, match="returned list: expected a dictionary"):
        tiny_model.ask(PICTURE_HW3, faulty, faulty.Parameters(how="list"))


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        (("CLIP_POOLED",), "classify"),
        (("CLIP_DENSE", "CLIP_POOLED"), "semantic"),
        (("SAM", "CLIP_DENSE"), "masks"),
    ],
)
def test_its_frame_is_that_of_our_own_heads(tiny_model: SamClip, outputs, expected) -> None:
    class Own(Head):
        pass

    Own.outputs = outputs
    config = tiny_model.config
    size = config.image_size if expected == "masks" else config.size_of(expected)
    assert Own().size(config) == size


def test_a_class_that_cannot_be_served_is_refused() -> None:
    class Wrong(Head):
        outputs = "SAM"

    class Taken(Head):
        @dataclass
        class Parameters:
            image: str

    with pytest.raises(TypeError, match="expected one or more of SAM"):
        check(Wrong())
    with pytest.raises(TypeError, match="Parameters has image, which every request has"):
        check(Taken())


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("fruit.py:RipeFruit", "ripe-fruit"),
        ("/a/b/fruit.py:Ripeness", "ripeness"),
        ("shop.heads:SKU", "sku"),
        ("probes/parts", "parts"),
        ("probes/parts/", "parts"),
    ],
)
def test_its_name_follows_from_its_specification(spec: str, name: str) -> None:
    assert name_of(spec) == name


@pytest.mark.parametrize("spec", ["", ".", "/", "probes/Parts", "a b", "x.py:", "ü"])
def test_a_specification_without_a_usable_name_is_refused(spec: str) -> None:
    with pytest.raises(HeadError, match="no usable name"):
        name_of(spec)


def test_a_file_needs_a_class() -> None:
    with pytest.raises(HeadError, match=r"is a file: name its class too, as in fruit.py:CLASS"):
        name_of("fruit.py")


def test_a_file_finds_its_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [])
    (tmp_path / "own_neighbour.py").write_text("ANSWER = {'ripe': 1}\n")
    (tmp_path / "own_fruit.py").write_text(
        "from samclip_core import Head\nimport own_neighbour\n\n"
        "class Fruit(Head):\n    def answer(self, features, parameters):\n"
        "        return own_neighbour.ANSWER\n"
    )
    head = open_head(f"{tmp_path}/own_fruit.py:Fruit")
    assert head.answer(None, None) == {"ripe": 1}


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("missing.py:Head", HeadError, "missing.py cannot be read"),
        ("tests.own_heads:Missing", HeadError, "no class Missing"),
        ("tests.own_heads:BaseModel", HeadError, "no class BaseModel that is"),
        ("no_such_module:Head", ModuleNotFoundError, "no_such_module"),
    ],
)
def test_a_head_that_is_not_there_is_an_error(spec, error, message) -> None:
    with pytest.raises(error, match=message):
        open_head(spec)

"""The folder of ``samclip probe`` is a head: read strictly, of one checkpoint, with a refusal."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from samclip_core import Area, SamClip
from samclip_core.answers.own import open_head
from samclip_core.answers.probe import DENSE, POOLED, Part
from samclip_core.errors import HeadError, InvalidRequest

PICTURE_HW3 = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
CLASSES = ["ant", "bee", "cat"]


def write(folder: Path, served: SamClip, outputs=POOLED, **changed) -> str:
    folder.mkdir(exist_ok=True)
    about = {
        "kind": "probe",
        "model": {"name": "tiny", "digest": served.digest},
        "outputs": outputs,
        "classes": CLASSES,
        "threshold": 0.4,
    }
    (folder / "head.json").write_text(json.dumps(about | changed))
    random = np.random.default_rng(1)
    weight_CD = random.normal(0, 3, (3, served.config.text_dim)).astype(np.float32)
    save_file(
        {"weight": weight_CD, "bias": np.zeros(3, np.float32)}, folder / "weights.safetensors"
    )
    return str(folder)


@pytest.mark.parametrize(("outputs", "area"), [(POOLED, None), (DENSE, (5.0, 5.0, 40.0, 30.0))])
def test_it_answers_about_the_vectors_that_a_client_gets(
    tmp_path: Path, tiny_model: SamClip, outputs, area
) -> None:
    head = open_head(write(tmp_path, tiny_model, outputs))
    head.load(tiny_model)
    answer = tiny_model.ask(PICTURE_HW3, head, Part(area) if area else None)
    vector_D = tiny_model.embed_image(PICTURE_HW3, area=Area(area) if area else None)
    expected_C = head.probabilities(vector_D)
    assert [one["class"] for one in answer["scores"]] == [
        CLASSES[i] for i in np.argsort(-expected_C)
    ]
    assert answer["probability"] == pytest.approx(expected_C.max(), abs=1e-4)
    assert sum(one["probability"] for one in answer["scores"]) == pytest.approx(1)
    assert answer["class"] == answer["scores"][0]["class"]

    head.threshold = 1.0
    assert tiny_model.ask(PICTURE_HW3, head, Part())["class"] == ""


def test_an_area_outside_is_the_callers_fault(tmp_path: Path, tiny_model: SamClip) -> None:
    head = open_head(write(tmp_path, tiny_model, DENSE))
    assert tiny_model.ask(PICTURE_HW3, head, Part())["scores"]  # the whole picture
    with pytest.raises(InvalidRequest, match="beyond the image"):
        tiny_model.ask(PICTURE_HW3, head, Part((0.0, 0.0, 65.0, 9.0)))


def test_another_checkpoint_is_refused(tmp_path: Path, tiny_model: SamClip) -> None:
    head = open_head(write(tmp_path, tiny_model))
    with pytest.raises(HeadError, match=f"{tiny_model.digest[:12]}, the checkpoint here has ffff"):
        head.load(SimpleNamespace(digest="f" * 64, config=tiny_model.config))
    wider = replace(tiny_model.config, text_dim=7)
    with pytest.raises(HeadError, match="those of the checkpoint 7"):
        head.load(SimpleNamespace(digest=tiny_model.digest, config=wider))


@pytest.mark.parametrize(
    "changed",
    [
        {"kind": "other"},
        {"classes": CLASSES[:2]},
        {"classes": ["ant", "ant", "bee"]},
        {"classes": ["ant", "", "bee"]},
        {"classes": ["ant", ["bee"], "cat"]},
        {"classes": ["ant", "\ud800", "cat"]},
        {"classes": "abc"},
        {"threshold": float("nan")},
        {"threshold": "0.5"},
        {"outputs": ["SAM"]},
        {"model": {"name": "tiny"}},
        {"model": None},
    ],
    ids=str,
)
def test_a_damaged_description_is_refused(tmp_path: Path, tiny_model: SamClip, changed) -> None:
    with pytest.raises(HeadError, match=r"is no part of a probe .*expected a folder"):
        open_head(write(tmp_path, tiny_model, **changed))


def of_bytes(about: dict, data: bytes = b"") -> bytes:
    header = json.dumps(about).encode()
    return len(header).to_bytes(8, "little") + header + data


def tensor(dtype: str = "F32", shape: object = (3, 2), end: object = 24, start: int = 0) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


BIAS = tensor(shape=[3], start=24, end=36)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 100,
        of_bytes({}),
        of_bytes({"weight": tensor("F16"), "bias": BIAS}, bytes(36)),
        of_bytes({"weight": tensor(shape=[6]), "bias": BIAS}, bytes(36)),
        of_bytes({"weight": tensor(shape=[-1, 2]), "bias": BIAS}, bytes(36)),
        of_bytes({"weight": tensor(shape=[2, 3]), "bias": BIAS}, bytes(36)),
        of_bytes({"weight": tensor(shape=[3, 2.0]), "bias": BIAS}, bytes(36)),
        of_bytes({"weight": tensor(shape=[2**70, 2]), "bias": BIAS}, bytes(36)),
        of_bytes({"weight": tensor(end="24"), "bias": BIAS}, bytes(36)),
        of_bytes({"weight": tensor(), "bias": BIAS}, bytes(30)),
        of_bytes({"weight": tensor(), "bias": BIAS}, np.full(9, np.nan, np.float32).tobytes()),
    ],
)
def test_damaged_weights_are_refused(tmp_path: Path, tiny_model: SamClip, content: bytes) -> None:
    spec = write(tmp_path, tiny_model)
    (tmp_path / "weights.safetensors").write_bytes(content)
    with pytest.raises(HeadError, match=r"weights\.safetensors is no part of a probe"):
        open_head(spec)
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(HeadError, match="No such file"):
        open_head(spec)

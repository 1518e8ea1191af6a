"""Mixtures of a SAM and a CLIP-only student are compared with the merge."""

from argparse import ArgumentTypeError
from pathlib import Path

import pytest
import torch
from torch import nn

from samclip_core.nn.network import SAM_PARTS, SamClipNet, load_net
from tests.photographs import draw, things, write_classes, write_shard
from tests.public_sets import WRITERS
from tests.tiny import make_tiny_checkpoint
from training import suites
from training.claims import wise_ft
from training.claims.wise_ft import interpolate, load_sam, verdict


def small(value: float, head: bool) -> SamClipNet:
    parts: dict[str, nn.Module] = {"image_encoder": nn.BatchNorm1d(1)}
    if head:
        parts["clip_head"] = nn.Linear(1, 1)
    net = SamClipNet(parts)
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.fill_(value)
    return net


def test_weights_are_mixed_one_by_one_and_what_only_the_student_has_stays() -> None:
    teacher, student = small(2, head=False), small(10, head=True)
    mixed = interpolate(teacher, student, 0.25).state_dict()
    assert mixed["image_encoder.weight"].item() == 4
    assert mixed["image_encoder.running_var"].item() == 4
    assert mixed["image_encoder.num_batches_tracked"].item() == 10
    assert mixed["clip_head.weight"].item() == 10
    assert student.state_dict()["image_encoder.weight"].item() == 10
    assert teacher.state_dict()["image_encoder.weight"].item() == 2


def test_a_tensor_that_the_student_lacks_is_an_error() -> None:
    with pytest.raises(KeyError, match="clip_head"):
        interpolate(small(2, head=True), small(10, head=False), 0.5)


def test_the_teacher_comes_from_a_directory_or_the_best_weights_of_its_stage(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    own = load_net(tiny_checkpoint, SAM_PARTS).state_dict()
    torch.save(own, tmp_path / "best.pt")
    for path in (tiny_checkpoint, tmp_path / "best.pt"):
        loaded = load_sam(path, tiny_checkpoint).state_dict()
        assert loaded.keys() == own.keys()
        assert all(torch.equal(loaded[key], own[key]) for key in own)


def test_a_share_must_beat_the_merge_on_both_axes_and_on_other_photographs() -> None:
    worse = {"0.0": (0.65, 0.1), "0.5": (0.6, 0.8), "1.0": (0.4, 0.75), "merge": (0.6, 0.7)}
    better = {"0.3": (0.61, 0.71), "0.4": (0.7, 0.9)}
    assert verdict(worse, worse | better).startswith("No point of the curve beats")
    chosen = worse | better
    assert verdict(chosen, worse | {"0.4": better["0.4"]}).endswith("of these beat it: 0.4.")
    assert verdict(chosen, worse).endswith("of these beat it: none.")


def test_the_command_prints_the_curve_between_two_checkpoints(
    tmp_path: Path,
    tiny_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The merged model is the student here, so the curve ends at the student."""
    monkeypatch.setattr(wise_ft, "SHARES", (0.0, 1.0))
    sam = make_tiny_checkpoint(tmp_path / "sam", seed=1)
    drawings = {"1": draw(0), "2": draw(1)}  # one photograph for reporting, one for choosing
    for source in ("coco_multi", "imagen200"):
        samples = {key: things(d) | {"cls": key.encode()} for key, d in drawings.items()}
        write_shard(tmp_path / source / "val-0.tar", samples)
        write_classes(tmp_path / source, {1: "dog", 2: "cat"})
    given = {"--sam": sam, "--student": tiny_checkpoint, "--merge": tiny_checkpoint}
    given["--root"] = tmp_path
    assert wise_ft.main([str(word) for pair in given.items() for word in pair]) == 0
    shown = capsys.readouterr().out
    first, last, merge = (line.split(" | ")[1:] for line in shown.splitlines() if "%" in line)
    assert last == merge
    assert first[0] != merge[0]
    assert "on both axes" in shown


def test_the_axes_may_be_figures_of_public_sets(
    tmp_path: Path,
    tiny_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wise_ft, "SHARES", (1.0,))
    monkeypatch.setattr(suites, "openai_templates", lambda: ("a {}",))
    for name in ("coco-boxes", "places365"):
        WRITERS[name](tmp_path / name)
    given = {"--sam": tiny_checkpoint, "--student": tiny_checkpoint, "--merge": tiny_checkpoint}
    words = [str(word) for pair in given.items() for word in pair]
    axes = [f"coco-boxes/ap={tmp_path}/coco-boxes", f"places365/paper_top1={tmp_path}/places365"]
    assert wise_ft.main([*words, "--axes", *axes]) == 0
    head, _, student, merge = capsys.readouterr().out.splitlines()[:4]
    assert head == "| share of the student | coco-boxes ap | places365 paper_top1 |"
    assert student.split(" | ")[1:] == merge.split(" | ")[1:]
    axes[0] = f"coco-boxes/nothing={tmp_path}/coco-boxes"
    with pytest.raises(ValueError, match="coco-boxes has no figure nothing: it has ap, ap50"):
        wise_ft.main([*words, "--axes", *axes])


@pytest.mark.parametrize("given", ["coco-boxes/ap", "nothing/ap=x", "coco-boxes=x"])
def test_an_axis_that_is_none_is_said(given: str) -> None:
    with pytest.raises(ArgumentTypeError, match="expected SUITE/FIGURE=FOLDER"):
        wise_ft.Axis.read(given)

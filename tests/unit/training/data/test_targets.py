"""Stored outputs of a teacher are found by photograph and view, and only where they fit."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.photographs import draw, jpg, write_shard
from training.data.sample import Sample
from training.data.sources import Source, open_source
from training.data.targets import Plan, StoredTargets, crop_of, identity

PLAN = Plan(teacher="a" * 64, views=2, part=3)


def photograph(**parts: object) -> Sample:
    drawn = {"key": "one", "source": "set", "encoded": jpg(draw(1).image_HW3), "info": {}}
    return Sample(**drawn | parts)


def a_source(folder: Path, count: int = 5) -> Source:
    write_shard(folder / "0.tar", {f"{i}": {"jpg": jpg(draw(i).image_HW3)} for i in range(count)})
    return open_source(str(folder))


def store(folder: Path, source: Source, plan: Plan = PLAN) -> None:
    """Write targets as the job does, with 10·i + k for sample i and view k."""
    replace(plan, sources={source.name: source.digest()}).write(folder)
    value = 10 * np.arange(len(source), dtype=np.float16)[:, None] + np.arange(plan.views)
    for number, file in enumerate(plan.files(folder, source)):
        rows = slice(number * plan.part, (number + 1) * plan.part)
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, value[rows, :, None].repeat(4, -1))


def test_a_crop_depends_on_the_name_and_its_number_alone():
    crop = crop_of(photograph(), 0)
    assert crop == crop_of(photograph(info={"x": 1}), 0)
    others = [
        crop_of(photograph(), 1),
        crop_of(photograph(key="two"), 0),
        crop_of(photograph(source="other"), 0),
    ]
    assert len({crop, *others}) == 4


def test_a_crop_is_pinned():
    """Stored outputs outlive this version of the code, so their crops must never change."""
    crop = crop_of(photograph(), 3)
    values = crop.share, crop.down, crop.across, crop.flip
    assert values == pytest.approx((0.8923605, 0.3499613, 0.6873578, True))


def test_a_teacher_is_known_by_its_weights():
    def net(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))

    assert identity(net(0)) == identity(net(0))
    moved = net(0)
    moved[1].running_mean[0] = 1e-6
    hidden = net(0)
    hidden.register_buffer("scale", torch.ones(()), persistent=False)
    half = net(0).to(torch.bfloat16)
    assert len({identity(m) for m in (net(0), net(1), moved, hidden, half)}) == 5


def test_what_was_kept_is_found_by_source_index_and_view(tmp_path: Path):
    source = a_source(tmp_path / "set")
    store(tmp_path / "kept", source)
    targets = StoredTargets.open(tmp_path / "kept", PLAN.teacher, [source])
    assert replace(targets.plan, sources={}) == PLAN
    for index in range(5):
        for view in range(2):
            assert targets.at("set", index, view).tolist() == [10 * index + view] * 4
    copy = pickle.loads(pickle.dumps(targets))
    assert copy.at("set", 4, 1).tolist() == [41] * 4
    with pytest.raises(IndexError):
        targets.at("set", 0, 2)


def test_targets_of_another_teacher_or_other_photographs_are_refused(tmp_path: Path):
    source = a_source(tmp_path / "before/set")
    store(tmp_path / "kept", source)
    with pytest.raises(ValueError, match="outputs of teacher aaaaaaaaaaaa, not of bbbbbbbbbbbb"):
        StoredTargets.open(tmp_path / "kept", "b" * 64, [source])
    changed = a_source(tmp_path / "after/set", count=6)
    with pytest.raises(ValueError, match="made from other photographs of set: use another folder"):
        StoredTargets.open(tmp_path / "kept", PLAN.teacher, [changed])


def test_targets_of_an_older_version_are_used_if_their_views_are_square(tmp_path: Path):
    source = a_source(tmp_path / "set")
    store(tmp_path / "kept", source)
    file = tmp_path / "kept/targets.json"
    plan = json.loads(file.read_text())
    file.write_text(json.dumps(plan | {"dense": False, "crops": "square"}))
    targets = StoredTargets.open(tmp_path / "kept", PLAN.teacher, [source])
    assert targets.at("set", 4, 1).tolist() == [41] * 4
    file.write_text(json.dumps(plan | {"dense": False, "size": 224}))
    with pytest.raises(ValueError, match="an older version with padded views: use another folder"):
        StoredTargets.open(tmp_path / "kept", PLAN.teacher, [source])


def test_targets_that_are_not_all_there_are_refused(tmp_path: Path):
    source, other = a_source(tmp_path / "set"), a_source(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match=r"run training\.distillation\.embeddings first"):
        StoredTargets.open(tmp_path / "kept", PLAN.teacher, [source])
    store(tmp_path / "kept", source)
    with pytest.raises(FileNotFoundError, match="2 of 2 parts of other are missing"):
        StoredTargets.open(tmp_path / "kept", PLAN.teacher, [source, other])
    PLAN.files(tmp_path / "kept", source)[1].unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 parts of set are missing .* resumes"):
        StoredTargets.open(tmp_path / "kept", PLAN.teacher, [source])


def test_a_folder_for_other_views_is_no_place_for_these(tmp_path: Path):
    plan = replace(PLAN, sources={"set": "1"})
    plan.check(tmp_path, plan)
    plan.check(tmp_path, replace(PLAN, sources={"another": "2"}))  # sources may be added
    with pytest.raises(ValueError, match=r"2 square views in .*, not 3 square views in"):
        plan.check(tmp_path, replace(plan, views=3))

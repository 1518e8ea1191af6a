"""The outputs of a teacher are stored part by part, as training reads them again."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.photographs import draw, jpg, write_shard
from training.data.frames import View
from training.data.sample import BadSample
from training.data.sources import Source, open_source
from training.data.targets import Plan, StoredTargets, crop_of, identity
from training.distillation.embeddings import Embedder, embed, main

PLAN = Plan(teacher="", views=3, part=20)


VIEW = View(64, "bicubic")


class MeanColour(nn.Module):
    """A teacher that returns scaled mean colours of the valid pixels, and records its batches."""

    def __init__(self, scale: float = 1 / 255) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale), requires_grad=False)
        self.view = VIEW
        self.batches: list[int] = []

    def forward(self, pixels_B3SS: Tensor, sizes_B2: Tensor) -> tuple[Tensor, Tensor]:
        self.batches.append(len(pixels_B3SS))
        dense_B3hw = nn.functional.avg_pool2d(pixels_B3SS, 32) * self.scale
        valid_B1 = sizes_B2.prod(dim=1, keepdim=True)
        return dense_B3hw, pixels_B3SS.sum(dim=(2, 3)) / valid_B1 * self.scale


def a_source(folder: Path, count: int, broken: tuple[int, ...] = ()) -> Source:
    files = {f"{i:02d}": {"jpg": jpg(draw(i).image_HW3)} for i in range(count)}
    for index in broken:
        files[f"{index:02d}"]["jpg"] = files[f"{index:02d}"]["jpg"][:900]
    write_shard(folder / "0.tar", files)
    return open_source(str(folder))


def expect_all_right(targets: StoredTargets, source: Source, broken: tuple[int, ...]) -> None:
    """Check that every stored answer is the teacher's for the view that training recreates."""
    for index in range(len(source)):
        for view in range(targets.plan.views):
            if index in broken:
                with pytest.raises(BadSample):
                    targets.at(source.name, index, view)
                continue
            (pixels_3LL,) = crop_of(source[index], view).views(source[index], [VIEW])
            pixels_B3SS = torch.from_numpy(pixels_3LL)[None].float()
            _, pooled_B3 = MeanColour()(pixels_B3SS, torch.tensor([[VIEW.side] * 2]))
            pooled_3 = targets.at(source.name, index, view)
            assert pooled_3.dtype == np.float16
            assert np.allclose(pooled_3, pooled_B3[0], atol=1e-3)


def embedder(teacher: nn.Module, source: Source, folder: Path, plan: Plan = PLAN) -> Embedder:
    plan = replace(plan, teacher=identity(teacher), sources={source.name: source.digest()})
    plan.write(folder)
    return Embedder(teacher, [source], plan, folder, "cpu")


def test_a_part_holds_the_answers_to_all_views_and_leaves_out_the_broken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    source, teacher = a_source(tmp_path / "set", 25, broken=(2, 21)), MeanColour()
    work = embedder(teacher, source, tmp_path / "kept")
    assert [work({"source": "set", "start": start}) for start in (0, 20)] == [{"broken": 1}] * 2
    # The first call determines the shapes; the others hold three views of up to 16 photographs.
    assert teacher.batches == [1, 3 * 15, 3 * 4, 3 * 4]
    targets = StoredTargets.open(tmp_path / "kept", identity(teacher), [source])
    expect_all_right(targets, source, broken=(2, 21))
    assert "skipped: set/02: the photograph is broken" in caplog.text
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2


def test_two_sources_of_one_name_are_refused(tmp_path: Path):
    sources = [a_source(tmp_path / f"{i}/set", 1) for i in range(2)]
    with pytest.raises(ValueError, match=r"expected unique source names, got .*set"):
        embed(MeanColour(), sources, tmp_path / "kept", PLAN)
    assert not (tmp_path / "kept").exists()


def test_an_official_teacher_must_be_named(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--recipe", "vit-b"])
    assert "give --clip" in capsys.readouterr().err


@pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*")  # Ray Data's defaults
@pytest.mark.slow
@pytest.mark.usefixtures("small_ray")
def test_the_job_does_what_is_missing_and_refuses_another_teacher(tmp_path: Path):
    folder, plan = tmp_path / "kept", replace(PLAN, part=2)
    first, second = a_source(tmp_path / "first", 5, broken=(1, 3)), a_source(tmp_path / "second", 2)
    embedder(MeanColour(), first, folder, plan)({"source": "first", "start": 0})
    done = plan.files(folder, first)[0]
    made = done.stat().st_mtime_ns

    assert embed(MeanColour(), [first, second], folder, plan) == 1  # one was reported before
    assert done.stat().st_mtime_ns == made
    targets = StoredTargets.open(folder, identity(MeanColour()), [first, second])
    expect_all_right(targets, first, broken=(1, 3))
    expect_all_right(targets, second, broken=())

    assert embed(MeanColour(), [second], folder, plan) == 0  # everything is done
    with pytest.raises(ValueError, match="holds outputs of teacher"):
        embed(MeanColour(1 / 254), [first], folder, plan)
    assert Plan.read(folder) == targets.plan

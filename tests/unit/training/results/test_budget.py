from dataclasses import replace
from pathlib import Path

import pytest

from training.results import budget, costs
from training.results.budget import report
from training.results.costs import (
    H100,
    PLANS,
    REACHED,
    SAM_SIDE,
    Plan,
    Stage,
    cores,
    peak_memory,
    step_flops,
    step_seconds,
    steps,
)
from training.results.footprint import Forward, Memory

FORWARD = Forward(
    encoder={224: 10.0, 448: 40.0, SAM_SIDE: 200.0},
    head={224: 1.0, 448: 4.0, SAM_SIDE: 20.0},
    clip_teacher=7.0,
    prompt=0.5,
)
MEMORY = Memory(
    2e9,
    {"head": 8e6, "all": 4e8},
    {224: 1e8, 448: 4e8, SAM_SIDE: 2e9},
    {224: 1e7, 448: 4e7, SAM_SIDE: 2e8},
    3e6,
)
HEAD = Stage(name="head", epochs=2, sides=(224, 448), learns="head")
ALL = Stage(name="all", epochs=1, sides=(224,), learns="all")
PLAN = Plan(
    name="by hand",
    images=1000,
    stages=(HEAD, ALL),
    batch=10,
    at_once=4,
    sam_images=2,
    sam_at_once=2,
    sam_prompts=3,
    rounds=4,
    checkpointing=False,
)


def test_a_step_that_trains_the_head_runs_the_rest_forward_only():
    by_side = (10 + 3 * 1 + 7, 40 + 3 * 4 + 7)
    assert step_flops(PLAN, HEAD, FORWARD) == 10 * sum(by_side) / 2


def test_a_joint_step_adds_both_sams_and_every_prompt():
    clip = 10 * (3 * (10 + 1) + 7)
    sam = 2 * ((3 + 1) * 200 + 3 * 4 * (3 + 1) * 0.5)
    assert step_flops(PLAN, ALL, FORWARD) == clip + sam


def test_checkpointing_runs_what_learns_once_more():
    more = step_flops(replace(PLAN, checkpointing=True), ALL, FORWARD)
    assert more - step_flops(PLAN, ALL, FORWARD) == 10 * (10 + 1) + 2 * 200


def test_a_step_takes_the_time_of_the_gpu_with_most_images_and_of_the_gradients():
    assert steps(PLAN, HEAD) == 200
    gpu = replace(H100, peak=1e3, links=(400.0, 50.0))
    two_images = 2 * (20 + 59) / 2 / (0.35 * 1e3)  # of 10 images on 8 GPUs
    summed = 2 * 7 / 8 * 8e6 / (REACHED * 400)
    assert step_seconds(PLAN, HEAD, FORWARD, MEMORY, gpu, 8) == pytest.approx(two_images + summed)
    clip, sam = 3 * (10 + 1) + 7, (3 + 1) * 200 + 3 * 4 * (3 + 1) * 0.5
    one_of_each = (clip + sam) / (0.35 * 1e3)
    summed = 2 * 15 / 16 * 4e8 / (REACHED * 50)  # between nodes
    assert step_seconds(PLAN, ALL, FORWARD, MEMORY, gpu, 16) == pytest.approx(one_of_each + summed)


def test_a_gpu_holds_the_larger_of_both_forward_passes():
    assert peak_memory(PLAN, HEAD, MEMORY, 1) == 2e9 + 4 * 4e8
    assert peak_memory(PLAN, HEAD, MEMORY, 10) == 2e9 + 4e8
    assert peak_memory(PLAN, ALL, MEMORY, 1) == 2e9 + 2 * (2e9 + 3 * 4 * 3e6)
    small = replace(PLAN, checkpointing=True)
    assert peak_memory(small, ALL, MEMORY, 1) == 2e9 + 2 * (2e8 + 3 * 4 * 3e6)


def test_the_plan_is_the_recipes():
    (paper, _) = PLANS["vit-b"]
    assert (paper.batch, paper.sam_images, paper.sam_prompts, paper.rounds) == (2048, 32, 32, 11)
    assert [stage.sides for stage in paper.stages] == [(224, 448)] * 2 + [(224, 448, 1024)]


def test_a_gpu_needs_the_cores_that_read_its_frames_in_the_time_of_a_step(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(costs, "FRAMES_PER_CORE", {224: 5.0, 448: 2.5})
    monkeypatch.setattr(costs, "SAM_FRAMES_PER_CORE", 0.5)
    gpu = replace(H100, peak=1e3)
    seconds = step_flops(PLAN, HEAD, FORWARD) / (8 * 0.35 * 1e3)
    assert cores(PLAN, HEAD, FORWARD, gpu) == pytest.approx(10 * (0.2 + 0.4) / 2 / seconds / 8)
    seconds = step_flops(PLAN, ALL, FORWARD) / (8 * 0.35 * 1e3)
    assert cores(PLAN, ALL, FORWARD, gpu) == pytest.approx((10 * 0.2 + 2 / 0.5) / seconds / 8)


def test_the_papers_schedule_has_the_papers_steps():
    paper, short = PLANS["vit-b"]
    counts = [steps(paper, stage) for stage in paper.stages]
    assert counts == [pytest.approx(392_500, rel=1e-3), pytest.approx(314_000, rel=1e-3),
                      pytest.approx(59_000, rel=3e-3)]  # fmt: skip
    assert sum(steps(short, stage) for stage in short.stages) * 19 < sum(counts)


def test_the_report_names_every_stage_and_adds_up():
    text = report([PLAN], FORWARD, MEMORY)
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    head, learned = [row for row in rows if row[0] in ("head", "all")][:2]
    assert [head[1:3], learned[1:3]] == [["2", "200"], ["1", "100"]]
    assert "780" in text  # images per batch: 78 GB / 100 MB
    hours = [row for row in rows if len(row) == 7]
    assert hours[0][1:4] == ["8 × H100", "32 × H100", "256 × H100"]
    assert [row[0] for row in hours[2:]] == ["head", "all", "**all**", "**cost**", "efficiency"]
    assert hours[-1][1] == hours[-1][4] == "100%"


def test_the_command_prints_and_writes_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(budget, "count_forward", lambda *_: FORWARD)
    monkeypatch.setattr(budget, "estimate_memory", lambda *_: MEMORY)
    assert budget.main(["--recipe", "vit-b", "--out", f"{tmp_path}/BUDGET.md"]) == 0
    written = (tmp_path / "BUDGET.md").read_text()
    assert written in capsys.readouterr().out
    assert all(plan.name in written for plan in PLANS["vit-b"])

from dataclasses import replace
from pathlib import Path

import pytest

from training.results import budget
from training.results.budget import (
    H100,
    PLANS,
    SAM_SIDE,
    Plan,
    Stage,
    cores,
    hours,
    report,
    step_flops,
    steps,
)
from training.results.footprint import Forward, Memory

FORWARD = Forward(
    encoder={224: 10.0, 448: 40.0, SAM_SIDE: 200.0},
    head={224: 1.0, 448: 4.0, SAM_SIDE: 20.0},
    clip_teacher=7.0,
    prompt=0.5,
)
MEMORY = Memory(2e9, {224: 1e8, 448: 4e8, SAM_SIDE: 2e9}, {224: 1e7, 448: 4e7, SAM_SIDE: 2e8}, 3e6)
HEAD = Stage(name="head", epochs=2, sides=(224, 448), learns="head")
ALL = Stage(name="all", epochs=1, sides=(224,), learns="all")
PLAN = Plan(
    name="by hand", images=1000, stages=(HEAD, ALL), batch=10, sam_images=2, sam_prompts=3, rounds=4
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


def test_hours_are_steps_over_the_speed_that_is_reached():
    assert steps(PLAN, HEAD) == 200
    gpu = replace(H100, peak=1e3)
    speed = 8 * 0.35 * 1e3
    assert hours(PLAN, HEAD, FORWARD, gpu) == pytest.approx(200 * 395 / speed / 3600)


def test_a_gpu_needs_the_cores_that_read_its_frames_in_the_time_of_a_step(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(budget, "FRAMES_PER_CORE", {224: 5.0, 448: 2.5})
    monkeypatch.setattr(budget, "SAM_FRAMES_PER_CORE", 0.5)
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
    rows = [line for line in text.splitlines() if line.startswith(("| head", "| all"))]
    assert [row.split(" | ")[1:3] for row in rows] == [["2", "200"], ["1", "100"]]
    assert "780" in text  # images per batch: 78 GB / 100 MB
    lengths = {line.count("|") for line in text.splitlines() if line.startswith("| stage")}
    assert lengths == {9}


def test_the_command_prints_and_writes_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(budget, "count_forward", lambda *_: FORWARD)
    monkeypatch.setattr(budget, "estimate_memory", lambda *_: MEMORY)
    assert budget.main(["--recipe", "vit-b", "--out", f"{tmp_path}/BUDGET.md"]) == 0
    written = (tmp_path / "BUDGET.md").read_text()
    assert written in capsys.readouterr().out
    assert all(plan.name in written for plan in PLANS["vit-b"])

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from samclip_core.io import checkpoint, manifest
from samclip_core.model import SamClip
from tests.checkout import sources
from tests.coco_set import INSTANCES, write, write_coco
from tests.photographs import draw, jpg, write_shard
from training import evaluate
from training.evaluation.suite import Metrics, Options
from training.suites import Suite


def flags(options: dict[str, object]) -> list[str]:
    return [f"--{name}={value}" for name, value in options.items()]


def run(checkpoint: Path, *others: str, **options: object) -> int:
    return evaluate.main([f"--checkpoint={checkpoint}", *others, *flags(options)])


def test_the_command_writes_what_it_prints(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
):
    samples = {
        str(seed): {
            "jpg": jpg(draw(seed).image_HW3),
            "json": json.dumps({"captions": [f"the dog {seed}"]}).encode(),
        }
        for seed in range(2)
    }
    write_shard(tmp_path / "coco_multi/val-0.tar", samples)
    out = tmp_path / "new/metrics.json"
    assert run(tiny_checkpoint, suite="retrieval", root=tmp_path, out=out) == 0
    written = json.loads(out.read_text())
    assert written.pop("digest") == SamClip.load(tiny_checkpoint).digest
    assert (written.pop("part"), written.pop("dtype")) == ("report", "float32")
    files, _ = manifest.read(tiny_checkpoint)
    for file in (checkpoint.CONFIG, checkpoint.WEIGHTS):
        assert written.pop(file) == files[file]
    ways = ("text_to_image", "image_to_text")
    assert list(written) == [f"coco_multi_{way}_r{k}" for way in ways for k in (1, 5, 10)]
    assert written["coco_multi_text_to_image_r5"] == 1
    printed = capsys.readouterr().out
    rows = [line.split("|") for line in printed.splitlines() if "%" in line]
    assert [row[2].strip() for row in rows] == [f"{value:.1%}" for value in written.values()]
    assert out.with_suffix(".md").read_text() == printed


def test_a_suite_is_given_what_the_command_line_says(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
):
    given = []

    def task(model: SamClip, options: Options) -> Metrics:
        given.append((len(model.config.templates), options))
        return {"figure": 0.5}

    monkeypatch.setitem(evaluate.SUITES, "coco-boxes", Suite(task, ""))
    out = tmp_path / "metrics.json"
    monkeypatch.setenv("SAMCLIP_DATA", str(tmp_path))
    run(tiny_checkpoint, suite="coco-boxes", out=out)
    more = {"detections": Path("b"), "limit": 3, "protocol": "paper", "part": "select"}
    options = more | {
        "templates": "openai",
        "suite": "coco-boxes",
        "root": tmp_path / "x",
        "out": out,
    }
    run(tiny_checkpoint, "--refine", **options)
    assert given == [
        (1, Options(root=tmp_path, part="report")),
        (80, Options(root=tmp_path / "x", refine=True, **more)),  # the paper's templates
    ]


@pytest.mark.parametrize(
    ("suite", "flags", "count"),
    [("imagenet", [], 80), ("voc", [], 80), ("voc", ["--templates=own"], 1), ("semantic", [], 1)],
)
def test_public_sets_with_names_have_the_papers_templates(
    tmp_path: Path,
    tiny_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    suite: str,
    flags: list[str],
    count: int,
):
    given = []

    def task(model: SamClip, options: Options) -> Metrics:
        given.append(len(model.config.templates))
        return {}

    own = evaluate.SUITES[suite]
    monkeypatch.setitem(evaluate.SUITES, suite, replace(own, task=task, reads=()))
    run(tiny_checkpoint, *flags, suite=suite, root=tmp_path, out=tmp_path / "metrics.json")
    assert given == [count]


def test_the_help_names_the_source_of_every_protocol(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        evaluate.main(["--help"])
    text = re.sub(r"\n {18}(?=\S)", " ", capsys.readouterr().out)  # one line per suite
    for name in evaluate.SUITES:
        (line,) = [line for line in text.splitlines() if line.startswith(f"  {name} ")]
        known = any(word in line for word in ("table", "own", "section", "the same"))
        assert known, line


def test_the_clip_head_is_measured_at_the_given_side(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    sides = []

    def task(model: SamClip, options: Options) -> Metrics:
        frame = np.zeros((9, 9, 3), np.uint8)
        sides.extend(model.config.size_of(task) for task in ("classify", "semantic", "retrieval"))
        sides.append(model.encode(frame, sides[0]).geometry.size)
        sides.append(model.encode(frame).geometry.size)
        return {"figure": 0.5}

    monkeypatch.setitem(evaluate.SUITES, "coco-boxes", Suite(task, ""))
    out = tmp_path / "metrics.json"
    assert run(tiny_checkpoint, suite="coco-boxes", root=tmp_path, out=out, size=96) == 0
    assert sides == [96, 96, 96, 96, 128]
    assert run(tiny_checkpoint, suite="coco-boxes", root=tmp_path, out=out, size=100) == 1
    assert "frame of 100 pixels: choose a positive multiple of 32" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["--limit=3", "--suite=masks", "--size=96", "--protocol=paper"])
def test_a_card_holds_no_part_of_the_figures(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str], part: str
):
    with pytest.raises(SystemExit):
        run(tiny_checkpoint, "--card", part)
    assert "remove --limit, --size, --protocol and --suite" in capsys.readouterr().err


def test_all_means_our_own_photographs(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in evaluate.SUITES:
        monkeypatch.setitem(evaluate.SUITES, name, Suite(lambda *_, name=name: {name: 0.5}, ""))
    for name in evaluate.OWN:
        monkeypatch.setitem(evaluate.OWN, name, evaluate.SUITES[name])
    out = tmp_path / "metrics.json"
    run(tiny_checkpoint, suite="all", root=tmp_path, out=out)
    written = json.loads(out.read_text())
    suites = ["masks", "classification", "retrieval", "semantic", "words"]
    assert [name for name in written if name in evaluate.SUITES] == suites


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--checkpoint=nowhere"], "no checkpoint 'nowhere'"),
        (["--suite=voc", "--root=/nowhere"], "no voc in /nowhere: expected ImageSets/"),
        (["--root=/nowhere"], "no shards val-*.tar in /nowhere/bsds500, nor"),
        (["--suite=documents", "--root=/nowhere"], "no file /nowhere/imagenet1k_sample/classes"),
        (["--suite=coco-boxes", "--root=ROOT/text"], "instances_val2017.json is not JSON"),
        (["--suite=coco-boxes", "--root=ROOT/empty"], "has no 'images'"),
    ],
)
def test_a_mistake_of_the_user_is_one_line(
    tmp_path: Path,
    tiny_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
):
    for folder, content in (("text", "no JSON"), ("empty", "{}")):
        write(tmp_path / folder / INSTANCES, content)
        (tmp_path / folder / "val2017").mkdir()
    given = [flag.replace("ROOT", str(tmp_path)) for flag in flags]
    assert evaluate.main([f"--checkpoint={tiny_checkpoint}", f"--root={tmp_path}", *given]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("samclip eval: ")
    assert message in line


@pytest.mark.parametrize("flag", ["--device=nonsense", "--threads=0", "--limit=0", "--limit=-3"])
def test_a_flag_that_cannot_be_is_named(flag: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exit_:
        evaluate.main([flag])
    assert exit_.value.code == 2
    name, _, value = flag.partition("=")
    assert f"argument {name}: {value!r}" in capsys.readouterr().err


def test_workers_share_the_pictures_and_change_no_figure(
    tmp_path: Path,
    tiny_checkpoint: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
):
    """Two workers run as a user starts them, and one in this process."""
    write_coco(tmp_path, [draw(seed) for seed in range(5)])
    options = {"suite": "coco-panoptic", "protocol": "served", "root": tmp_path, "threads": 1}
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    assert run(tiny_checkpoint, **options, out=tmp_path / "1.json") == 0
    options |= {"checkpoint": tiny_checkpoint, "workers": 2, "out": tmp_path / "2.json"}
    done = subprocess.run(
        [sys.executable, "-m", "samclip.cli", "eval", *flags(options)],
        env=os.environ | {"PYTHONPATH": sources()},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for printed, errors in (capsys.readouterr(), (done.stdout, done.stderr)):
        assert printed.count("coco panoptic miou |") == 1  # the others print nothing
        assert errors.count("5,000 were published") == 1
    alone, shared = (json.loads((tmp_path / f"{n}.json").read_text()) for n in (1, 2))
    texts = [name for name, value in alone.items() if isinstance(value, str)]
    assert [alone.pop(name) for name in texts] == [shared.pop(name) for name in texts]
    assert shared == pytest.approx(alone, rel=1e-12)


def test_a_probe_has_no_workers(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        run(tiny_checkpoint, suite="probe", workers=2)
    assert "--workers: probe runs in one process" in capsys.readouterr().err

"""The ``debug`` recipe end to end, on photographs that the test draws."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
import torch

from samclip_core.config import EDGE
from samclip_core.io import checkpoint
from samclip_core.io.image import ImageLimits, decode
from samclip_core.model import SamClip
from tests import photographs
from tests.checkout import ROOT
from training import merges, train
from training.data.sources import open_source
from training.loop import GRADIENT_NORM
from training.recipes import STAGES
from training.results import run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Restore the number of threads, which a training changes, and with it the order of sums."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    photographs.write_training_sets(root)
    return root


def arguments(data: Path, out: Path, *more: str) -> list[str]:
    """Return arguments for float32: CPUs differ in rounding and in the speed of bfloat16."""
    return [
        *("--recipe", "debug", "--data", str(data), "--out", str(out), "--threads", "1"),
        *("--set", "dtype=float32"),
        *more,
    ]


def start(data: Path, out: Path, *more: str) -> int:
    return train.main(arguments(data, out, *more))


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("runs") / "debug"
    assert start(data, out) == 0
    return out


@pytest.fixture(scope="module")
def model(trained: Path) -> SamClip:
    return SamClip.load(trained / "checkpoint")


def test_the_checkpoint_is_whole_and_keeps_the_text_tower(model: SamClip, trained: Path):
    concepts = 1000 + len(photographs.COLOURS)  # ImageNet's classes and those of camvid
    assert model.config == replace(EDGE, clip_head=replace(EDGE.clip_head, hidden=concepts))
    bundled = checkpoint.resolve("edge")
    for file in (checkpoint.TEXT_WEIGHTS, checkpoint.TOKENIZER):
        assert (trained / "checkpoint" / file).read_bytes() == (bundled / file).read_bytes()


def test_it_says_where_it_comes_from(trained: Path, data: Path):
    lineage = json.loads((trained / "checkpoint" / checkpoint.LINEAGE).read_text())
    assert lineage["recipe"]["name"] == "debug"
    assert set(lineage["teachers"]) == {"clip", "sam", "text", "names"}
    assert lineage["data"] == {
        source: open_source(str(data / source)).digest() for source in ("bsds500", "camvid")
    }


def test_every_stage_leaves_its_losses(trained: Path):
    clip = ["clip", "dense", "name"]
    columns = {
        "sam-teacher": ["sam"],
        "head-probing": clip,
        "joint": ["clip", "dense", "name", "sam"],
        "adaptation": clip,
    }
    for stage, names in columns.items():
        path = trained / f"states/{stage}.losses.tsv"
        assert path.read_text().splitlines()[0].split("\t") == ["step", *names, GRADIENT_NORM]
        log = np.loadtxt(path, ndmin=2, skiprows=1)
        assert log.shape == (2, 2 + len(names))
        assert log[:, 0].tolist() == [0, 1]
        assert np.isfinite(log).all()
        assert (log[:, 1:] >= 0).all()
        assert (log[-1, 1:] > 0).all()  # a student that starts as its teacher has nothing to learn


def test_the_losses_match_the_golden_figures(trained: Path):
    """Instruction sets from AVX2 to AVX-512 change these losses by at most 1e-5."""
    golden = json.loads((ROOT / "tests/golden/debug_losses.json").read_text())
    assert set(golden) == set(STAGES)
    for stage, steps in golden.items():
        names, *rows = (trained / f"states/{stage}.losses.tsv").read_text().splitlines()
        for row, expected in zip(rows, steps, strict=True):
            losses = dict(zip(names.split("\t"), map(float, row.split("\t")), strict=True))
            del losses["step"], losses[GRADIENT_NORM]
            assert losses == pytest.approx(expected, rel=1e-3, abs=1e-4), stage


def test_the_card_of_a_run_shows_its_losses_rates_and_masks(trained: Path, data: Path):
    assert run.main([str(trained), "--set", str(data / "bsds500")]) == 0
    text = (trained / "run.md").read_text()
    for stage in STAGES:
        losses = (trained / f"states/{stage}.losses.tsv").read_text().splitlines()
        first, last = (float(row.split("\t")[1]) for row in losses[1:])
        name = losses[0].split("\t")[1]
        assert f"| {stage}, losses | {name} | 2 | {first:.4g} | {last:.4g} |" in text
        assert f"| {stage}, learning rate | rate | 2 | 0.0001 |" in text
    assert (trained / "run.svg").read_text().count("<polyline") == text.count("\n| ") - 2
    assert decode((trained / "masks.jpg").read_bytes(), ImageLimits()).shape[0] == 480


def after_stages(trained: Path, out: Path, *stages: str) -> Path:
    """Make ``out`` a run that has ended these stages of ``trained``, and no others.

    The names are embedded, which takes each worker a minute.
    """
    (out / "states").mkdir()
    for stage in (merges.NAMES.partition(".")[0], *stages):
        for file in (trained / "states").glob(f"{stage}.*"):
            shutil.copy(file, out / "states")
    return out


@pytest.fixture(scope="module")
def private_ray() -> Iterator[None]:
    """Let the training start a Ray of its own, beside those of other tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "local")
        yield
        ray.shutdown()


def kill_a_worker(states: Path) -> None:
    """End a worker of this process's Ray as soon as the joint stage has saved a state."""
    deadline = time.monotonic() + 900
    while not (states / "joint.state.pt").exists():
        assert time.monotonic() < deadline, "the run has not reached the joint stage"
        time.sleep(0.02)
    processes = psutil.Process().children(recursive=True)
    worker = next(p for p in processes if "TrainWorker" in command(p))
    assert worker.nice() == os.nice(0), "a busy machine would starve it"
    worker.kill()


def command(process: psutil.Process) -> str:
    with suppress(psutil.Error):  # it may have ended
        return "".join(process.cmdline())
    return ""


@pytest.mark.usefixtures("private_ray")
def test_two_workers_of_ray_train_write_the_losses_of_one_though_one_is_killed(
    data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    after_stages(trained, tmp_path, "sam-teacher", "head-probing")
    monkeypatch.chdir(data.parent)  # Ray Train starts its workers in other folders
    with ThreadPoolExecutor() as pool:
        killing = pool.submit(kill_a_worker, tmp_path / "states")
        assert start(Path(data.name), tmp_path, "--workers", "2") == 0
        killing.result()
    for name in STAGES:
        one, two = (
            np.loadtxt(run / f"states/{name}.losses.tsv", skiprows=1) for run in (trained, tmp_path)
        )
        np.testing.assert_allclose(two[:, :-1], one[:, :-1], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(two[:, -1], one[:, -1], rtol=1e-2)  # the gradient's norm
    assert SamClip.load(str(tmp_path / "checkpoint")).config.kind == "edge"


@pytest.mark.usefixtures("private_ray")
def test_an_error_of_a_worker_ends_the_command_without_a_restart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """After its restarts, Ray Train would raise an error of its own."""
    (tmp_path / "empty").mkdir()
    assert start(tmp_path / "empty", tmp_path, "--workers", "1") == 1
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("samclip train: ")
    assert f"{tmp_path}/empty/imagenet1k_sample/classes.json" in last

"""The image of trainings, and a training in it as docker-compose.yml describes it."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.checkout import ROOT
from tests.image import engine

pytestmark = [pytest.mark.image, pytest.mark.slow]  # it downloads and holds gigabytes of torch

PROJECT = "samclip-training"


@pytest.mark.usefixtures("docker")
def test_compose_trains_every_stage_and_the_volume_has_the_checkpoint(tmp_path: Path) -> None:
    engine.build("samclip:train", "EXTRAS=serve,train")
    compose = ("docker", "compose", "--project-name", PROJECT)
    environment = {**os.environ, "SAMCLIP_PHOTOGRAPHS": str(tmp_path)}
    train = (*compose, "run", "--rm", "-T", "train", "--recipe", "debug", "--out", "/runs/debug")
    try:
        run = subprocess.run(train, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-5000:]
        runs = ("--network", "none", "--volume", f"{PROJECT}_runs:/runs:ro")
        found = engine.docker(
            "run", "--rm", *runs, "samclip:train", "info", "/runs/debug/checkpoint"
        )
        assert "digest: " in found
    finally:
        subprocess.run([*compose, "down", "--volumes"], cwd=ROOT, env=environment, check=True)

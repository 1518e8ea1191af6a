"""The programs in ``examples/`` do what their first line says, against a running service."""

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.checkout import ROOT, sources
from tests.close import assert_close
from tests.e2e.conftest import Service

pytestmark = pytest.mark.e2e


def run(service: Service, name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": sources(), "SAMCLIP_SERVER": service.address}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def test_every_photograph_is_labelled_and_broken_files_are_named(
    service: Service, photo: bytes, tmp_path: Path
) -> None:
    for name in ("one.jpg", "two.jpg"):
        (tmp_path / name).write_bytes(photo)
    (tmp_path / "torn.jpg").write_bytes(photo[:1000])
    done = run(service, "label_folder.py", tmp_path, "a cat", "a motorcycle")
    rows = {
        name: (label, float(score)) for name, label, score in csv.reader(io.StringIO(done.stdout))
    }
    assert rows.keys() == {"one.jpg", "two.jpg"}
    assert_close(rows["one.jpg"], rows["two.jpg"], 1e-3)
    assert "torn.jpg: the JPEG file is damaged" in done.stderr


def test_a_cut_out_is_transparent_outside_the_mask(
    service: Service, photo: bytes, tmp_path: Path
) -> None:
    source, target = tmp_path / "cat.jpg", tmp_path / "cat.png"
    source.write_bytes(photo)
    run(service, "cut_out.py", source, 15, 0, 385, 299, target)
    picture = Image.open(target)
    alpha_HW = np.asarray(picture)[..., 3]
    assert picture.mode == "RGBA"
    assert set(np.unique(alpha_HW)) <= {0, 255}
    assert alpha_HW.any(axis=0).all()  # cropped to the mask

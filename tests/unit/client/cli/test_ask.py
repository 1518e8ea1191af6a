"""``samclip ask``: answers of heads of one's own, as rows and as files."""

import base64
import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
from PIL import Image
from samclip import cli
from samclip.cli import formats

from samclip_core import SamClip
from tests.checkout import sources
from tests.unit.client.cli.conftest import Run
from tests.unit.client.conftest import HEIGHT, WIDTH, Captured

SET = ("--set", "at_least=.7", "--set", "words=a", "--set", "words=b=c")


def test_the_table_has_a_column_per_key_and_the_sizes_of_parts(run: Run, photo: str) -> None:
    ran = run("ask", "echo", photo, *SET)
    assert ran.status == 0
    head, row = ran.out.splitlines()
    assert head.split() == ["image", "at_least", "drawn", "answer.image", "map", "parts", "share",
                            "words"]  # fmt: skip
    half = f"mask=mask of {HEIGHT * WIDTH // 2} pixels"
    for cell in (photo, " .7 ", "picture 4×3", "float32 2×3", f"[{half} name=b, {half} name=a]"):
        assert cell in row
    assert row.endswith("[a, b=c]")


@pytest.mark.parametrize("form", ["json", "jsonl", "csv"])
def test_other_forms_have_the_parts_themselves(form: str, run: Run, photo: str) -> None:
    out = run("ask", "echo", photo, *SET, "--format", form).out
    if form == "csv":
        (row,) = csv.DictReader(io.StringIO(out))
        row = {key: json.loads(row[key]) for key in ("parts", "map", "words")} | {
            "drawn": json.loads(row["drawn"]), "answer.image": row["answer.image"]
        }  # fmt: skip
    else:
        row = json.loads(out)["results"][0] if form == "json" else json.loads(out)
    assert pycocotools.mask.decode(row["parts"][1]["mask"])[:, : WIDTH // 2].all()
    assert row["map"] == [[0, 1, 2], [3, 4, 5]]
    assert (row["words"], row["answer.image"]) == (["a", "b=c"], "the head's")
    kind, _, picture = row["drawn"].partition(",")
    assert kind == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(picture))).size == (4, 3)


def test_parts_are_written_as_files(run: Run, photo: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = run("ask", "echo", photo, "--out", str(out))
    names = ["overlay.png", "mask-000.png", "mask-001.png", "picture-000.png", "array-000.npy"]
    assert ran.out.splitlines()[-5:] == [str(out / name) for name in names]
    with Image.open(out / "mask-001.png") as mask:
        assert np.asarray(mask)[:, : WIDTH // 2].all()
    assert np.load(out / "array-000.npy").shape == (2, 3)
    assert run("ask", "echo", photo, "--out", str(tmp_path / "one.png")).status == 0
    with Image.open(tmp_path / "one.png") as overlay:
        assert overlay.size == (WIDTH, HEIGHT)


def test_csv_has_the_columns_of_all_rows(capsys: Captured) -> None:
    made = formats.Csv()
    for row in ({"image": "a", "x": 1}, {"image": "b", "y": None}):
        made.add(formats.Answer([row]))
    made.close(None)
    assert capsys.readouterr().out == "image,x,y\na,1,\nb,,\n"


def test_a_head_that_is_not_there_is_named_for_each_image(run: Run, photo: str) -> None:
    ran = run("ask", "rine", photo)
    assert (ran.status, ran.out) == (1, "")
    assert f"{photo}: no head 'rine' is served here" in ran.err


LOCAL = ("--head", "tests.own_heads:Closest")


@pytest.fixture
def local(tiny_checkpoint: Path, tiny_model: SamClip, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(SamClip, "load", lambda name: tiny_model)
    return f"--local={tiny_checkpoint}"


def test_a_head_answers_in_this_process(local: str, photo: str, capsys: Captured) -> None:
    words = ("--set", "words=a cat", "--set", "words=a dog", "--set", "at_least=.5")
    assert cli.main(["ask", "closest", photo, local, *LOCAL, *words, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["results"]
    assert row["word"] in ("a cat", "a dog")
    assert row["sure"] is True


@pytest.mark.parametrize(
    ("head", "options", "error"),
    [
        ("closest", [*LOCAL, "--set", "at_least=2"], "at_least: Input should be less than"),
        ("closest", [*LOCAL, "--set", "most=2"], "unknown parameter 'most': the head has at_least"),
        ("other", LOCAL, "no head 'other' answers here, only 'closest'"),
        ("none", ["--head", "tests.own_heads:None"], "--head: tests.own_heads has no class None"),
        ("faulty", ["--head", "tests.own_heads:Faulty", "--set", "how=invalid"], "no face in"),
        (
            "faulty",
            ["--head", "tests.own_heads:Faulty", "--set", "how=crash"],
            "in answer\n    raise RuntimeError",
        ),
    ],
)
def test_what_is_wrong_with_a_head_in_this_process_is_said(
    head: str, options: list[str], error: str, local: str, photo: str, capsys: Captured
) -> None:
    assert cli.main(["ask", head, photo, local, *options]) == 1
    assert error in capsys.readouterr().err


def test_a_head_that_hangs_does_not_keep_the_command_from_its_end(
    tiny_checkpoint: Path, photo: str, tmp_path: Path
) -> None:
    code = "import time\nfrom samclip_core import Head\nclass Hang(Head):\n"
    code += "    def answer(self, features, parameters):\n        time.sleep(1000)\n"
    (tmp_path / "hang.py").write_text(code)
    words = ["ask", "hang", photo, f"--local={tiny_checkpoint}", "--head", "hang.py:Hang"]
    done = subprocess.run(
        [sys.executable, "-m", "samclip.cli", *words, "--timeout", "3"],
        env={"PYTHONPATH": sources(), "HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert f"{photo}: no answer within" in done.stderr


@pytest.mark.parametrize("options", [["--local"], LOCAL])
def test_a_process_needs_a_head_and_a_service_takes_none(
    options: list[str], photo: str, capsys: Captured
) -> None:
    assert cli.main(["ask", "closest", photo, *options]) == 2
    assert "--local and --head SPEC belong together" in capsys.readouterr().err

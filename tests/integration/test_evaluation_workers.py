"""Any number of workers gives the figures of one process, digit for digit."""

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from samclip_core.model import SamClip
from tests.close import assert_close
from tests.coco_set import INSTANCES, write, write_coco
from tests.photographs import draw
from training.evaluation import coco as coco_suites
from training.evaluation import evaluate, layouts, recognition, semantic
from training.evaluation.pool import Pool
from training.evaluation.suite import Options

pytestmark = pytest.mark.slow


def load(checkpoint: Path) -> SamClip:
    torch.set_num_threads(1)
    return SamClip.load(checkpoint, dtype="float32")


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Return a data set of seven photographs, with boxes of a detector."""
    write_coco(tmp_path, [draw(seed) for seed in range(7)])
    annotations = json.loads((tmp_path / INSTANCES).read_text())["annotations"]
    keys = ("image_id", "category_id", "bbox")
    scores = np.random.default_rng(0).random(len(annotations))
    boxes = [
        {key: a[key] for key in keys} | {"score": float(score)}
        for a, score in zip(annotations, scores, strict=True)
    ]
    write(tmp_path / "boxes.json", boxes)
    return tmp_path


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def process(model: SamClip, part: object) -> int:
    return os.getpid()


def end_once(marker: Path, model: SamClip, part: int) -> int:
    """End the process on the first call of all, as a lost machine would."""
    if part == 1 and not marker.exists():
        marker.touch()
        os._exit(1)
    return 10 * part


def fail(model: SamClip, part: object) -> None:
    raise FileNotFoundError(f"no photograph {part}")


def test_workers_give_the_figures_of_one_process(
    coco: Path,
    tiny_checkpoint: Path,
    small_ray: None,
    one_thread: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = load(tiny_checkpoint)
    tasks = (
        coco_suites.coco_boxes,
        recognition.captions,
        partial(semantic.public, layouts.coco_stuff),  # by both protocols
    )
    options = Options(root=coco, detections=coco / "boxes.json")

    def figures(pool: Pool | None) -> list[dict[str, float]]:
        given = Options(root=coco, detections=options.detections, pool=pool)
        return [task(model, given) for task in tasks]

    alone = figures(None)
    pool = Pool(partial(load, tiny_checkpoint), 3)
    actors = pool.actors
    for count in (1, 2, 3):
        pool.actors = actors[:count]
        assert_close(figures(pool), alone)
        processes = set(pool.map(model.config, process, range(12)))
        assert len(processes) == count
        assert os.getpid() not in processes
    with pytest.raises(FileNotFoundError, match=r"^no photograph 0$"):
        list(pool.map(model.config, fail, range(3)))
    lost = partial(end_once, coco / "lost")
    assert list(pool.map(model.config, lost, range(4))) == [0, 10, 20, 30]
    assert (coco / "lost").exists()
    with pytest.raises(ValueError, match="Ray finds no GPU"):
        Pool(partial(load, tiny_checkpoint), 1, gpu=True)
    pool.close()

    out = coco / "out.json"
    flags = ["--suite=coco-boxes", f"--detections={options.detections}", f"--root={coco}"]
    more = [f"--checkpoint={tiny_checkpoint}", f"--out={out}", "--workers=1", "--threads=1"]
    assert evaluate.main([*flags, *more]) == 0
    written = json.loads(out.read_text())
    assert_close({name: written[name] for name in alone[0]}, alone[0])

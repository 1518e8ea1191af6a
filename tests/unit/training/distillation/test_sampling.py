"""A step is drawn from its number alone, by any worker and by readers in other processes."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
import torch

from tests import photographs
from tests.checkout import sources
from tests.photographs import annotated, draw, write_shard
from tests.tiny import TINY
from training import workers
from training.data.frames import View
from training.distillation.sampling import Drawn, Kinds, Sampler, batches
from training.recipes import Run, SamBatch, debug

SIZE = TINY["edge"].image_size


@pytest.fixture
def run(training_sets: Path, tmp_path: Path) -> Run:
    batch = SamBatch(images=4, prompts=2, corrected=0.5, at_once=2)
    recipe = replace(debug(), sam_batch=batch, clip_images=5, at_once=3)
    return Run(recipe=recipe, config=TINY["edge"], data=str(training_sets), folder=tmp_path)


def both(run: Run) -> Sampler:
    kinds = Kinds(photos=(SIZE,), view=View(48, "bicubic"), outlined=True)
    return Sampler(run, 0, kinds)


def same(a: Drawn, b: Drawn) -> bool:
    pairs = zip(tensors(a), tensors(b), strict=True)
    return a.clicks == b.clicks and all(torch.equal(*pair) for pair in pairs)


def tensors(value: object) -> Iterator[torch.Tensor]:
    """Yield every tensor in lists and dataclasses."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from tensors(item)
    elif is_dataclass(value):
        yield from tensors([*vars(value).values()])


def test_a_step_is_the_same_whenever_it_is_drawn(run: Run):
    sampler = both(run)
    first, later = sampler[3], sampler[4]
    assert same(both(run)[3], first)
    assert not same(first, later)


def test_a_step_comes_in_pieces_that_can_be_learnt_from_at_once(run: Run):
    drawn = both(run)[0]
    assert [len(piece.pixels_B3SS) for piece in drawn.photos] == [3, 2]
    assert [len(piece.pixels_B3SS) for piece in drawn.outlined] == [2, 2]
    for piece in drawn.outlined:
        assert piece.pixels_B3SS.shape[1:] == (3, SIZE, SIZE)
        assert piece.target_Pmm.shape[1:] == (SIZE // 2, SIZE // 2)
        counts = Counter(piece.image_index_P.tolist())
        assert set(counts) == {0, 1}
        assert set(counts.values()) <= {1, 2}


@pytest.mark.parametrize("count", [2, 3])
def test_workers_share_a_step_without_changing_it(
    run: Run, count: int, monkeypatch: pytest.MonkeyPatch
):
    """The slots of all workers together equal those of one worker, however they are split."""
    whole = both(run)[7]
    parts = []
    for rank in range(count):
        monkeypatch.setattr(workers, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(workers, "count", lambda: count)
        parts.append(both(run)[7])
    assert {part.clicks for part in parts} == {whole.clicks}

    def images(drawn: list[Drawn], of: Callable[[Drawn], list]) -> Counter[bytes]:
        pieces = [piece for one in drawn for piece in of(one)]
        return Counter(image.numpy().tobytes() for p in pieces for image in p.pixels_B3SS)

    for of in (lambda drawn: drawn.photos, lambda drawn: drawn.outlined):
        assert images(parts, of) == images([whole], of)
    clicks = [
        sorted(row.tobytes() for one in drawn for p in one.outlined for row in p.chance_PR.numpy())
        for drawn in (parts, [whole])
    ]
    assert clicks[0] == clicks[1]


def test_photographs_are_crops_without_padding_at_each_networks_size(run: Run):
    for piece in both(run)[0].photos:
        pixels_B3LL, sizes_B2 = piece.view()
        assert pixels_B3LL.shape == (len(piece.pixels_B3SS), 3, 48, 48)
        assert (sizes_B2.unique().tolist(), piece.sizes_B2.unique().tolist()) == ([48], [SIZE])
        for pixels in (piece.pixels_B3SS, pixels_B3LL):
            assert pixels.dtype == torch.uint8
            assert pixels.max() > 100  # the range is 0–255
            assert pixels.is_contiguous(memory_format=torch.channels_last)


def test_pixels_are_bytes_until_they_are_on_the_device(run: Run):
    drawn = both(run)[0]
    moved = drawn.to(torch.device("meta"))
    assert len(drawn) == len(moved) == 9
    assert moved.clicks == drawn.clicks
    for before, after in zip(
        drawn.photos + drawn.outlined, moved.photos + moved.outlined, strict=True
    ):
        assert before.pixels_B3SS.dtype == torch.uint8
        assert (after.pixels_B3SS.dtype, after.pixels_B3SS.device.type) == (torch.float32, "meta")
        assert after.sizes_B2.dtype == before.sizes_B2.dtype
    assert moved.outlined[0].prompts.points_PN2.is_meta
    assert torch.equal(drawn.to(torch.device("cpu")).photos[0].pixels_B3SS,
                       drawn.photos[0].pixels_B3SS.float())  # fmt: skip


def test_a_gpus_steps_come_in_page_locked_memory(run: Run, monkeypatch: pytest.MonkeyPatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    drawn = both(run)[0]
    assert same(drawn.pin_memory(), drawn)
    tensors = [piece.pixels_B3SS for piece in (*drawn.photos, *drawn.outlined)]
    tensors += [drawn.outlined[0].prompts.points_PN2, drawn.photos[0].sizes_B2]
    assert all(any(tensor is known for known in pinned) for tensor in tensors)
    for device, locked in (("cuda", True), ("cpu", False)):
        sampler = both(replace(run, device=torch.device(device)))
        assert batches(sampler, range(1)).pin_memory is locked


def test_frames_of_photographs_have_one_side_in_a_step_and_all_sides_in_time(run: Run):
    sampler = Sampler(run, 0, Kinds(photos=(64, 96, 128)))
    sides = [{piece.pixels_B3SS.shape[-1] for piece in sampler[i].photos} for i in range(20)]
    assert all(len(side) == 1 for side in sides)
    assert set.union(*sides) == {64, 96, 128}


def test_masks_are_corrected_in_as_many_steps_as_asked(run: Run):
    recipe = replace(run.recipe, sam_batch=SamBatch(images=1, prompts=1, corrected=0.5))
    sampler = Sampler(replace(run, recipe=recipe), 0, Kinds(outlined=True))
    drawn = [sampler[step] for step in range(60)]
    assert {step.clicks for step in drawn} == {(), (True,)}
    assert 18 < sum(step.clicks == (True,) for step in drawn) < 42


def test_what_cannot_be_read_is_counted_logged_once_and_passed_over(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    broken = annotated(draw(1)) | {"jpg": annotated(draw(1))["jpg"][:200]}
    write_shard(tmp_path / "bsds500/train-0.tar", {"good": annotated(draw(0)), "broken": broken})
    recipe = replace(run.recipe, region_sets=(("bsds500", 1.0),))
    sampler = Sampler(replace(run, data=str(tmp_path), recipe=recipe), 0, Kinds(outlined=True))
    with caplog.at_level(logging.WARNING):
        for step in range(5):
            assert len(sampler[step].outlined) == 2
    assert len(sampler.region_pool.bad) == 1
    assert [
        record.getMessage() for record in caplog.records if "bsds500/broken" in record.getMessage()
    ]
    assert len(caplog.records) == 1


def test_a_set_without_a_single_region_is_an_error_not_an_endless_search(run: Run, tmp_path: Path):
    blank = replace(draw(0), labels_HW=np.zeros((120, 160), np.uint8))
    write_shard(tmp_path / "camvid/train-1.tar", {"nothing": photographs.outlined(blank)})
    recipe = replace(run.recipe, region_sets=(("camvid", 1.0),))
    sampler = Sampler(replace(run, data=str(tmp_path), recipe=recipe), 0, Kinds(outlined=True))
    with pytest.raises(ValueError, match="100 photographs in a row were unusable"):
        sampler[0]


@pytest.mark.parametrize("count", [1, 2])
def test_readers_give_the_steps_of_their_worker_in_order(
    run: Run, monkeypatch: pytest.MonkeyPatch, count: int
):
    monkeypatch.setattr(workers, "rank", lambda: count - 1)
    monkeypatch.setattr(workers, "count", lambda: count)
    sampler = both(run)
    cv2.connectedComponentsWithStats(np.eye(2000, dtype=np.uint8))  # starts OpenCV's threads
    read = list(batches(sampler, range(2, 5), readers=2))
    assert all(same(got, sampler[step]) for got, step in zip(read, range(2, 5), strict=True))
    assert sum(len(piece.pixels_B3SS) for piece in read[0].photos) == {1: 5, 2: 2}[count]


def test_readers_do_not_wait_for_a_lock_of_another_thread(run: Run):
    held = threading.Event()
    held.set()  # as a lock of a library that another thread is in
    os.register_at_fork(after_in_child=lambda: held.is_set() and signal.pause())
    try:
        (drawn,) = batches(both(run), range(1), readers=1)
    finally:
        held.clear()
    assert same(drawn, both(run)[0])


PARENT = """
import os, sys, time
from multiprocessing.util import get_temp_dir
import torch
from torch.utils.data import DataLoader
from training import workers
from training.distillation.sampling import _begin_reader

class Pid:
    def __getitem__(self, step):
        return torch.tensor(os.getpid())

if __name__ == "__main__":
    loader = DataLoader(Pid(), batch_size=None, sampler=range(9), num_workers=2, prefetch_factor=1,
                        multiprocessing_context=workers.clean(), worker_init_fn=_begin_reader)
    steps = iter(loader)
    print(int(next(steps)), int(next(steps)), get_temp_dir(), flush=True)
    time.sleep(600)
"""


def test_readers_end_with_a_worker_that_is_killed(tmp_path: Path):
    """Also where TMPDIR is too long for a socket, whose path has at most 107 bytes."""
    (tmp_path / "parent.py").write_text(PARENT)
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    command = [sys.executable, str(tmp_path / "parent.py")]
    environment = os.environ | {"PYTHONPATH": sources(), "TMPDIR": str(folder)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        *pids, sockets = parent.stdout.readline().split()
        readers = [psutil.Process(int(pid)) for pid in pids]
        started_by = readers[0].parent()
        parent.kill()
    assert len({*readers}) == 2
    _, alive = psutil.wait_procs([*readers, started_by], 60)
    assert not alive
    shutil.rmtree(sockets)

"""Shards at a URL are read in parts, each once, into a bounded folder on the disk."""

import io
import os
import pickle
import signal
import tarfile
import threading
from collections import Counter
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from tests.object_store import ObjectStore, Served, serve
from tests.photographs import write_shard, write_training_sets
from tests.tiny import TINY
from training import workers
from training.data import order, sources
from training.data import pool as drawing
from training.data.order import part_starts, seeded
from training.data.pool import PREFIX, Cache, Pool
from training.data.sources import open_source
from training.distillation.sampling import Drawn, Kinds, Sampler, batches
from training.recipes import Run, debug

CLEAN = workers.clean()
IMAGES = 4  # slots of a step
SAMPLES = 480
PART = 64 * 1024


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make parts of some ten photographs, in a temporary folder of this test alone."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(drawing.tempfile, "tempdir", str(tmp_path / "scratch"))
    monkeypatch.setattr(sources, "PAUSES", (0.0, 0.0))
    for name, value in {"PART": PART, "WINDOWS": 4}.items():
        monkeypatch.setattr(order, name, value)
    return tmp_path / "scratch"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[ObjectStore]:
    random = seeded(0)
    for shard in range(4):
        samples = {}
        for n in range(SAMPLES // 4):
            photograph = random.bytes(int(random.integers(2000, 4000)))
            samples[f"{shard}{n:03}"] = {"jpg": photograph, "json": b'{"n": 1}', "txt": b"words"}
        write_shard(tmp_path / f"root/set/train-{shard}.tar", samples)
    return serve(tmp_path, tmp_path / "notes", monkeypatch)


def pool(images: int = IMAGES) -> Pool:
    return Pool("store://root", (("set", 1.0),), images, (0,))


class Steps(Dataset[list[tuple[str, bytes]]]):
    """The keys and photographs of each step of a pool."""

    def __init__(self, made: Pool) -> None:
        self.pool = made

    def __getitem__(self, step: int) -> list[tuple[str, bytes]]:
        self.pool.prepare(step, range(IMAGES))
        slots = [(slot, seeded(step, slot)) for slot in range(IMAGES)]
        return [self.pool.draw(step, *slot, lambda s, _: (s.key, s.encoded)) for slot in slots]


def on_disk(made: Cache) -> int:
    return sum(size for _, size, _ in drawing._stored(made.folder))


def test_readers_read_each_part_once_and_little_more_than_the_photographs(
    store: type[ObjectStore], monkeypatch: pytest.MonkeyPatch
):
    made, on_the_disk = pool(), open_source(str(store.root / "root/set"))
    parts = part_starts(made.sources[0])
    steps = range(SAMPLES // IMAGES * 7 // 10)  # what follows is of the same epoch
    loader = DataLoader(
        Served(Steps(made)), batch_size=None, sampler=steps, num_workers=2,
        multiprocessing_context=CLEAN,
    )  # fmt: skip
    found = [sample for step in loader for sample in step]
    expected = {on_the_disk[i].key: on_the_disk[i].encoded for i in range(SAMPLES)}
    assert len(found) == len(steps) * IMAGES
    assert all(encoded == expected[key] for key, encoded in found)
    assert max(Counter(key for key, _ in found).values()) == 1

    requests = store.requests()
    assert len({(path, start) for path, start, *_ in requests}) == len(requests)
    assert len(requests) < len(parts) < SAMPLES / 10  # one by one, a photograph is a request
    read = sum(end - start for _, start, end, *_ in requests)
    assert read < sum(shard.stat().st_size for shard in (store.root / "root/set").glob("*.tar"))


def test_several_requests_are_in_flight(store: type[ObjectStore], monkeypatch: pytest.MonkeyPatch):
    together = threading.Barrier(drawing.REQUESTS, timeout=60)
    monkeypatch.setattr(store, "before", staticmethod(lambda path: together.wait()))
    made = pool(images=1)
    made.prepare(0, [0])  # the windows have a multiple of four parts
    for fetch in made.cache.under_way:
        fetch.result()
    assert len(store.requests()) == len(made.cache.under_way) == 2 * drawing.REQUESTS


def test_files_of_a_photograph_may_be_far_apart_in_a_shard(
    tmp_path: Path, store: type[ObjectStore]
):
    with tarfile.open(tmp_path / "root/set/train-9.tar", "w") as tar:
        for extension, size in (("jpg", 5000), ("json", 2)):
            for n in range(60):
                member = tarfile.TarInfo(f"far{n}.{extension}")
                member.size = size
                tar.addfile(member, io.BytesIO(b"{}" if size == 2 else bytes([n]) * size))
    made, source = pool(), open_source(str(tmp_path / "root/set"))
    for index in range(SAMPLES, SAMPLES + 60):
        assert made.cache.sample(0, index) == source[index]
    assert on_disk(made.cache) < 2 * 60 * 5000


def run_on(data: str, folder: Path) -> Run:
    recipe = replace(debug(), clip_images=4, sam_batch=replace(debug().sam_batch, images=2))
    return Run(recipe=recipe, config=TINY["edge"], data=data, folder=folder)


def tensors_of(drawn: Drawn) -> list[torch.Tensor]:
    pixels = [piece.pixels_B3SS for piece in (*drawn.photos, *drawn.outlined)]
    return [*pixels, *(batch.target_Pmm for batch in drawn.outlined)]


@pytest.mark.parametrize("readers", [0, 2])
def test_a_url_gives_the_frames_of_the_disk_from_any_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, readers: int
):
    write_training_sets(tmp_path / "root")
    serve(tmp_path, tmp_path / "notes", monkeypatch)
    kinds = Kinds(photos=(TINY["edge"].image_size,), outlined=True)
    disk = Sampler(run_on(str(tmp_path / "root"), tmp_path), 0, kinds)
    for first in (0, 5):
        url = Sampler(run_on("store://root", tmp_path), 0, kinds)
        assert url.photo_pool.cache is not None
        for step, drawn in zip(
            range(first, 8), batches(Served(url), range(first, 8), readers), strict=True
        ):
            pairs = zip(tensors_of(drawn), tensors_of(disk[step]), strict=True)
            assert all(torch.equal(*pair) for pair in pairs)


def test_a_request_that_fails_is_made_again(
    store: type[ObjectStore], monkeypatch: pytest.MonkeyPatch
):
    expected = [*map(Steps(pool()).__getitem__, range(3))]
    failed: list[str] = []

    def unsteady(path: str) -> None:
        if failed.count(path) < 2:
            failed.append(path)
            raise ConnectionError("reset by peer")

    monkeypatch.setattr(store, "before", staticmethod(unsteady))
    assert [*map(Steps(pool()).__getitem__, range(3))] == expected
    assert failed


def test_a_shard_that_is_gone_or_cut_is_an_error_with_its_remedy(store: type[ObjectStore]):
    made = pool()
    os.truncate(store.root / "root/set/train-3.tar", 1000)
    with pytest.raises(
        OSError, match=r"store://root/set/train-3.tar .* the file has changed since"
    ):
        made.cache.sample(0, SAMPLES - 1)
    (store.root / "root/set/train-3.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"train-3.tar is gone .*: put it back, or start"):
        made.cache.sample(0, SAMPLES - 1)
    assert not [*made.cache.folder.glob("*part*")]
    assert made.cache.sample(0, 0).key == "0000"


def test_the_disk_is_bounded(store: type[ObjectStore]):
    made = pool(images=1)
    made.prepare(0, [0])
    sizes = []
    for step in range(SAMPLES):
        made.prepare(step, [0])
        made.draw(step, 0, seeded(step), lambda sample, _: sample.key)
        sizes.append(on_disk(made.cache))
    total = sum((store.root / f"root/set/train-{n}.tar").stat().st_size for n in range(4))
    in_flight = 2 * drawing.REQUESTS * (PART + 4096)
    assert max(sizes) <= made.cache.limit + in_flight < total
    assert len(store.requests()) < 1.2 * len(part_starts(made.sources[0]))  # hardly any part twice


def test_a_part_that_a_reader_writes_now_is_not_removed(store: type[ObjectStore]):
    made = pool()
    written = made.cache.folder / ".0-9.part.partial"
    written.write_bytes(bytes(5000))
    made.cache.sample(0, 0)  # more than the limit, which is 0 before the first step
    assert written.exists()


def test_a_disk_that_is_too_small_is_an_error_with_its_remedy(
    store: type[ObjectStore], scratch: Path, monkeypatch: pytest.MonkeyPatch
):
    usage = drawing.shutil.disk_usage(scratch)
    monkeypatch.setattr(drawing.shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    with pytest.raises(OSError, match=r"has 0.0 GiB free, but .* set TMPDIR to a folder on a larg"):
        pool().prepare(0, range(IMAGES))
    monkeypatch.undo()


def test_workers_that_share_a_disk_need_room_for_all(
    store: type[ObjectStore], scratch: Path, monkeypatch: pytest.MonkeyPatch
):
    first, second = pool(), pool()
    first.prepare(0, range(IMAGES))
    usage, free = drawing.shutil.disk_usage(scratch), first.cache.limit * 5 // 4  # enough for one
    monkeypatch.setattr(drawing.shutil, "disk_usage", lambda _: usage._replace(free=free))
    with pytest.raises(OSError, match=r"all on this machine .* set TMPDIR to a folder on a larg"):
        second.prepare(0, range(IMAGES))


def fetch_and_hang(served: Served, pipe: Connection) -> None:
    """Die while a part is on its way: the store never answers this process."""
    ObjectStore.before = staticmethod(lambda path: (pipe.send("asked"), signal.pause()))
    served.dataset.cache.sample(0, 5)


def test_a_reader_that_is_killed_leaves_no_part_behind(store: type[ObjectStore]):
    made = pool()
    here, there = CLEAN.Pipe()
    reader = CLEAN.Process(target=fetch_and_hang, args=(Served(made), there))
    reader.start()
    assert here.recv() == "asked"
    reader.kill()
    reader.join()
    assert made.cache.sample(0, 5) == open_source(str(store.root / "root/set"))[5]
    assert made.cache.folder.exists()


def hold_a_cache(served: Served, scratch: Path, pipe: Connection) -> None:
    drawing.tempfile.tempdir = str(scratch)
    made = pool()
    assert made.cache.sample(0, 0) == served.dataset[0]
    pipe.send(made.cache.folder)
    signal.pause()


def test_jobs_on_a_machine_have_folders_of_their_own_and_leave_none(
    store: type[ObjectStore], scratch: Path
):
    here, there = CLEAN.Pipe()
    source = Served(open_source("store://root/set"))
    job = CLEAN.Process(target=hold_a_cache, args=(source, scratch, there))
    job.start()
    theirs = here.recv()
    mine = pool()
    mine.cache.sample(0, 0)
    assert theirs.exists()
    assert theirs != mine.cache.folder
    job.kill()
    job.join()
    later = pool()
    assert not theirs.exists()
    assert mine.cache.folder.exists()
    copy = pickle.loads(pickle.dumps(mine.cache))  # as for a reader
    assert copy.sample(0, 1) == mine.cache.sample(0, 1)
    del copy, mine, later
    assert not [*scratch.glob(f"{PREFIX}*")]


def test_few_steps_are_not_worth_whole_parts(store: type[ObjectStore]):
    assert Pool("store://root", (("set", 1.0),), IMAGES, (0,), few=True).cache is None
    assert Pool(str(store.root / "root"), (("set", 1.0),), IMAGES, (0,)).cache is None
    assert isinstance(pool().cache, Cache)

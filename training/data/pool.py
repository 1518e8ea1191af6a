"""Draw photographs out of several sets; parts of shards at URLs are kept on this machine's disk.

    TMPDIR/samclip-parts-XXXX/NUMBER-PART.part    the bytes of a part, from its first file on
    TMPDIR/samclip-parts-XXXX/lock                held by the worker; as long as its limit, empty
    TMPDIR/samclip-parts-XXXX/locks/0 …           each held by a reader that fetches a part

The folder belongs to one worker and is shared by its readers, so that no job disturbs another one.
It is removed when the worker ends, and that of a killed worker by the next one on the machine.
"""

import fcntl
import logging
import os
import shutil
import tempfile
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from samclip_core.io.files import replacing
from training.data.order import Order, Window, part_starts
from training.data.sample import BadSample, Sample
from training.data.sources import GAP, Source, open_source

log = logging.getLogger(__name__)
T = TypeVar("T")

TRIES = 100  # photographs for one slot
PREFIX = "samclip-parts-"
REQUESTS = 4  # in flight per reader
LOCKS = 4096  # far more than requests in flight: parts that share a lock wait
DISK_BLOCK = 4096
KEPT = 2
"""The most bytes on the disk, relative to the windows in use and the next ones: a reader may be
behind by a window."""


class Pool:
    """Photographs of several sets in the order of ``Order``; unusable ones are skipped."""

    def __init__(
        self,
        data: str,
        sets: Sequence[tuple[str, float]],
        images: int,
        key: Sequence[int],
        held_out: bool = False,
        few: bool = False,
    ) -> None:
        """``sets``: folders in ``data``, each with its weight relative to its size.

        ``images``: the slots of a step; ``key``: the seed. ``few``: only a few steps are drawn, for
        which whole parts of the shards are not worth reading.
        """
        self.sources = [open_source(f"{data}/{name}") for name, _ in sets]
        self.order = Order(self.sources, [weight for _, weight in sets], images, key, held_out)
        remote = {} if few else {n: s for n, s in enumerate(self.sources) if s.remote}
        self.cache = Cache(remote) if remote else None
        self.bad: set[tuple[str, int]] = set()

    def prepare(self, step: int, slots: Sequence[int]) -> None:
        """Begin to read what these slots of a step and of the next ones need."""
        if self.cache is not None:
            lanes = sorted({slot % self.order.lanes for slot in slots})
            self.cache.want(self.order.coming(step, lanes))

    def draw(
        self,
        step: int,
        slot: int,
        random: np.random.Generator,
        make: Callable[[Sample, int], T | None],
    ) -> T:
        """Draw photographs for a slot until ``make(sample, index)`` returns a result; return it.

        Broken photographs are logged once, added to ``bad`` and skipped. Raises ValueError after
        ``TRIES`` unusable photographs in a row.
        """
        turn = self.order.draw(step, slot)
        for _ in range(TRIES):
            number, index = turn.source, turn.sample()
            try:
                made = make(self._read(number, index), index)
            except BadSample as error:
                if (error.source, index) not in self.bad:
                    self.bad.add((error.source, index))
                    log.warning("skipped: %s (%d so far)", error, len(self.bad))
                made = None
            if made is not None:
                return made
            turn = self.order.other(step, slot, random)
        raise ValueError(
            f"{TRIES} photographs in a row were unusable ({len(self.bad)} broken): check the "
            f"sets {[source.name for source in self.sources]}"
        )

    def _read(self, number: int, index: int) -> Sample:
        if self.cache is not None and number in self.cache.sources:
            return self.cache.sample(number, index)
        return self.sources[number][index]


class Cache:
    """The parts of remote sources that the readers of a worker draw from."""

    def __init__(self, sources: Mapping[int, Source]) -> None:
        """``sources``: each by its number in the order of drawing."""
        self.sources = sources
        self.starts = {number: part_starts(source) for number, source in sources.items()}
        self.first_byte = {
            number: np.minimum.reduceat(source.index.offset_M, self._first_members(number))
            for number, source in sources.items()
        }
        self.bytes = {number: self._part_bytes(number) for number in sources}
        self.folder, lock = _own_folder()
        weakref.finalize(self, _remove, self.folder, lock)
        self.limit = 0
        self._begin()

    def _begin(self) -> None:
        """Begin without threads and fetches: each process has its own."""
        self.threads = ThreadPoolExecutor(REQUESTS)
        self.wanted: deque[tuple[int, int]] = deque()
        self.under_way: set[Future[None]] = set()

    def __getstate__(self) -> dict[str, Any]:
        of_process = {"threads", "wanted", "under_way"}
        return {key: value for key, value in vars(self).items() if key not in of_process}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()

    def want(self, windows: Iterable[tuple[int, Window]]) -> None:
        """Begin to fetch the parts of windows, each with the number of its source, in their order.

        Raises OSError if the disk has less space than they take.
        """
        parts = dict.fromkeys(
            (number, part)
            for number, window in windows
            if number in self.sources
            for part in window.parts
        )
        self._set_limit(KEPT * sum(int(self.bytes[number][part]) for number, part in parts))
        self.wanted = deque(part for part in parts if not self._touch(*part))
        self._go_on()

    def sample(self, number: int, index: int) -> Sample:
        """Read a sample of a source, from the disk if its part is there.

        Raises OSError if the part can be neither read nor stored, BadSample if it is broken.
        """
        self._go_on()
        source = self.sources[number]
        part = int(np.searchsorted(self.starts[number], index, side="right")) - 1
        path = self._path(number, part)
        while True:
            try:
                file = path.open("rb")
                break
            except FileNotFoundError:
                self._fetch(number, part, wait=True)
        with file:
            first = int(self.first_byte[number][part])
            places = source.places(index)
            contents = [os.pread(file.fileno(), size, start - first) for start, size in places]
        return source.sample(index, contents)

    def _go_on(self) -> None:
        """Keep a few fetches waiting, not all: a process ends when those have ended."""
        self.under_way = {fetch for fetch in self.under_way if not fetch.done()}
        while self.wanted and len(self.under_way) < 2 * REQUESTS:
            part = self.wanted.popleft()
            self.under_way.add(self.threads.submit(self._fetch, *part, wait=False))

    def _fetch(self, number: int, part: int, wait: bool) -> None:
        """Store a part, unless it is there; if another reader fetches it, ``wait`` or leave it."""
        with (self.folder / f"locks/{hash((number, part)) % LOCKS}").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            path = self._path(number, part)
            if path.exists():
                return
            blocks = self.sources[number].fetch(self._samples(number, part))
            first = int(self.first_byte[number][part])
            try:
                with replacing(path) as partial, partial.open("wb") as file:
                    for start, content in blocks:
                        file.seek(start - first)
                        file.write(content)
            except OSError as error:
                raise OSError(
                    f"a part of a shard could not be written to {self.folder} ({error}): up to "
                    f"{self.limit / 2**30:.1f} GiB are needed there; free some space, or set "
                    "TMPDIR to a folder on a larger disk"
                ) from error
        self._keep_within_limit()

    def _keep_within_limit(self) -> None:
        """Remove the parts that were wanted longest ago; the newest part always stays."""
        parts = sorted(_stored(self.folder))
        excess = sum(size for _, size, _ in parts) - self.limit
        for _, size, path in parts[:-1]:
            if excess <= 0:
                break
            Path(path).unlink(missing_ok=True)
            excess -= size

    def _set_limit(self, needed: int) -> None:
        if not self.limit:
            os.truncate(self.folder / "lock", needed)  # for the other workers to see
            rooms = [_room_left(folder) for folder in self.folder.parent.glob(f"{PREFIX}*")]
            free = shutil.disk_usage(self.folder).free
            if free < sum(rooms):
                raise OSError(
                    f"{self.folder.parent} has {free / 2**30:.1f} GiB free, but a worker keeps up "
                    f"to {needed / 2**30:.1f} GiB of its shards there, and all on this machine "
                    f"{sum(rooms) / 2**30:.1f} GiB more than now: free some space, or set TMPDIR "
                    "to a folder on a larger disk"
                )
            log.info("shards are read through %s: %.1f GiB", self.folder, needed / 2**30)
        self.limit = max(self.limit, needed)

    def _touch(self, number: int, part: int) -> bool:
        """Note that a part is wanted now; return whether it is there."""
        try:
            os.utime(self._path(number, part))
        except FileNotFoundError:
            return False
        return True

    def _path(self, number: int, part: int) -> Path:
        return self.folder / f"{number}-{part}.part"

    def _samples(self, number: int, part: int) -> range:
        first, end = self.starts[number][part : part + 2].tolist()
        return range(first, end)

    def _first_members(self, number: int) -> NDArray[np.int64]:
        """Return the first file of each part."""
        return self.sources[number].index.first_N1[self.starts[number][:-1]]

    def _part_bytes(self, number: int) -> NDArray[np.int64]:
        """Return about how many bytes each part takes on the disk: its files and the gaps read."""
        index, first_P = self.sources[number].index, self._first_members(number)
        taken_M = index.size_M.astype(np.int64)
        gap_M = np.diff(index.offset_M.astype(np.int64)) - taken_M[:-1]
        taken_M[:-1] += np.where((gap_M >= 0) & (gap_M <= GAP), gap_M, 0)
        return np.asarray(np.add.reduceat(taken_M, first_P) + DISK_BLOCK)


def _stored(folder: Path) -> Iterator[tuple[int, int, str]]:
    """Yield when each whole part was wanted last, the bytes that it takes, and its path."""
    for entry in os.scandir(folder):
        with suppress(FileNotFoundError):  # removed by another reader
            if entry.name.endswith(".part"):
                facts = entry.stat()
                yield facts.st_mtime_ns, facts.st_blocks * 512, entry.path


def _room_left(folder: Path) -> int:
    """Return the bytes that a worker may still store; 0 if that is not known."""
    try:
        return max(0, (folder / "lock").stat().st_size - sum(s for _, s, _ in _stored(folder)))
    except OSError:  # of another user, or removed now
        return 0


def _own_folder() -> tuple[Path, int]:
    """Make a folder for this process; return it with the number of its locked file.

    Folders whose process has ended are removed.
    """
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            with (folder / "lock").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # in use, of another user, or not finished
            continue
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        (folder / "locks").mkdir()
        own = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(own, fcntl.LOCK_EX)
        if os.fstat(own).st_nlink:  # not taken for an old one just now
            return folder, own
        os.close(own)


def _remove(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)

"""``python -m benchmarks.data_path``: how many training frames a core reads per second.

Photographs of 640×480 for CLIP; photographs of 1500×1000 with 38 masks, as in SA-1B. A frame is
read from a shard, decoded, cut, resized and made a batch with its prompts, as in a reader of
``samclip train``. Processor time is measured, so other processes hardly disturb.
"""

import argparse
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.traffic import photograph
from samclip_core.config import VIT_B
from samclip_core.engine.memory import keep_memory
from tests.photographs import instance, write_shard
from training.data.annotations import regions
from training.data.crops import Crop, View, stacked_views
from training.data.frames import cut
from training.data.order import seeded
from training.data.sources import Source, open_source
from training.distillation.segmentation import make_batch
from training.recipes import vit_b
from training.train import STEP_BYTES

CLIP_SIZE, SA_1B_SIZE = (640, 480), (1500, 1000)
CLIP_SIDES = (224, 448, 1024)
TEACHER = View(224, "bicubic")
SAM, SAM_SIDE = vit_b().sam_batch, VIT_B.image_size
MASKS = SAM.prompts + 6  # as many as are cut for a step
FILES, SA_1B_FILES = 48, 8


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data_path", description=__doc__.replace("``", "")
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="rounds, of which the best counts (5)"
    )
    arguments = parser.parse_args(argv)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    keep_memory(STEP_BYTES)
    with tempfile.TemporaryDirectory() as folder:
        _frames(Path(folder), arguments.rounds)
    return 0


def _frames(folder: Path, rounds: int) -> None:
    write_shard(folder / "clip/train-0.tar", dict(_clip_samples()))
    write_shard(folder / "sa1b/train-0.tar", dict(_sa_1b_samples()))
    clip, sa_1b = (open_source(str(folder / name)) for name in ("clip", "sa1b"))

    def bare(source: Source, index: int) -> None:
        np.asarray(Image.open(io.BytesIO(source[index].encoded)))

    def photo(views: Sequence[View], source: Source, index: int) -> None:
        for pixels_3LL in Crop.draw(seeded(index)).views(source[index], views):
            torch.from_numpy(stacked_views([pixels_3LL]))

    def outlined(source: Source, index: int) -> None:
        sample, random = source[index], seeded(index)
        frame = cut(sample, regions(sample), SAM_SIDE, SAM_SIDE // 4, random)
        make_batch([frame.first(SAM.prompts)], [random], SAM_SIDE, SAM.rounds)

    print("| frames | per second and core | milliseconds |\n|---|---:|---:|")
    _row("640×480 JPEG, full decoding alone", clip, bare, rounds)
    for side in CLIP_SIDES:
        _row(f"CLIP, {side} px", clip, partial(photo, [View(side)]), rounds)
        both = partial(photo, [View(side), TEACHER])
        _row(f"CLIP, {side} px, and the teacher's view", clip, both, rounds)
    _row("1500×1000 JPEG, full decoding alone", sa_1b, bare, rounds)
    _row(f"SA-1B-like, {SAM_SIDE} px, {MASKS} masks", sa_1b, outlined, rounds)


def _row(name: str, source: Source, read: Callable[[Source, int], None], rounds: int) -> None:
    taken = []
    for _ in range(rounds):
        begin = time.process_time()
        for index in range(len(source)):
            read(source, index)
        taken.append((time.process_time() - begin) / len(source))
    print(f"| {name} | {1 / min(taken):,.1f} | {1000 * min(taken):.2f} |", flush=True)


def _clip_samples() -> Iterator[tuple[str, dict[str, bytes]]]:
    for number in range(FILES):
        photo = _jpeg(photograph(number), CLIP_SIZE)
        yield f"{number:06}", {"jpg": photo, "json": b'{"caption": "a photograph"}'}


def _sa_1b_samples() -> Iterator[tuple[str, dict[str, bytes]]]:
    random = np.random.default_rng(0)
    for number in range(SA_1B_FILES):
        annotations = [instance(_blob(random, *SA_1B_SIZE)) for _ in range(MASKS)]
        content = json.dumps({"annotations": annotations}).encode()
        yield f"sa_{number}", {"jpg": _jpeg(photograph(number), SA_1B_SIZE), "json": content}


def _jpeg(file: bytes, size: tuple[int, int]) -> bytes:
    content = io.BytesIO()
    picture = Image.open(io.BytesIO(file)).convert("RGB").resize(size, Image.Resampling.BICUBIC)
    picture.save(content, "JPEG", quality=90)
    return content.getvalue()


def _blob(random: np.random.Generator, width: int, height: int) -> NDArray[np.uint8]:
    """Draw a wavy shape of 0.03 to 30 % of the photograph, small ones more often."""
    radius = np.sqrt(np.exp(random.uniform(np.log(3e-4), np.log(0.3))) * width * height / np.pi)
    angle_K = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    waves = sum(
        random.uniform(0, 0.25) * np.sin(n * angle_K + random.uniform(0, 6)) for n in (2, 3, 7, 19)
    )
    centre_2 = random.uniform((0, 0), (width, height))
    ring_K2 = np.stack([np.cos(angle_K), np.sin(angle_K)], axis=1) * (radius * (1 + waves))[:, None]
    mask_HW = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask_HW, [(centre_2 + ring_K2).astype(np.int32)], (1,))
    return mask_HW


if __name__ == "__main__":
    sys.exit(main())

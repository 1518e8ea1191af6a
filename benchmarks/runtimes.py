"""Part ``runtimes``: a new image of converted models by each runtime, and the processor's limit.

The weights are random, as speed does not depend on them; the sizes are those of the published
models, except RADIO's adaptors and its text tower, which are small.
"""

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.lines import Line, ratio
from samclip_core.config import (
    DecoderConfig,
    SamClipConfig,
    TextConfig,
)
from samclip_core.engine.base import PARTS, DtypeChoice, EngineName
from samclip_core.engine.choice import noise
from samclip_core.errors import CheckpointError
from samclip_core.families import efficientvit_sam, sam2
from samclip_core.families.efficientvit_sam import EfficientViTConfig
from samclip_core.families.radio import MlpConfig, RadioConfig
from tests import tiny

WALL, CPU = "new image, by runtime", "new image, by runtime: CPU time"
EAGER, OURS = "eager PyTorch", "ours"
SIDE = 2048  # of the matrices that show the processor's limit
PRECISIONS: dict[EngineName, DtypeChoice] = {
    **dict.fromkeys(("torch", "openvino", "onnxruntime"), "float32"),
    "auto": "auto",
}
RADIO = replace(
    tiny.TINY["radio"],
    image_size=512,
    embed_dim=256,
    decoder=DecoderConfig(),
    networks={
        "radio": RadioConfig(
            width=768,
            depth=12,
            heads=12,
            hidden=3072,
            prefix=8,
            class_token=1,
            table=128,
            words=MlpConfig(hidden=1536, blocks=1, output=tiny.TINY["radio"].text_dim),
            sam=MlpConfig(hidden=1536, blocks=1, output=1280),
            normalised=False,
        )
    },
)
MOBILE = replace(
    tiny.TINY["pair"],
    image_size=1024,
    embed_dim=256,
    text_dim=512,
    decoder=DecoderConfig(),
    text=TextConfig(tower="open_clip", model="ViT-B-32"),
)
EFFICIENTVIT_L0 = replace(
    MOBILE,
    backbone=efficientvit_sam.BACKBONE,
    image_size=512,
    stride=8,
    networks={
        "efficientvit": EfficientViTConfig(
            widths=(32, 64, 128, 256, 512),
            depths=(1, 1, 1, 4, 4),
            head=32,
            neck_width=256,
            neck_depth=4,
        )
    },
)
PE_CORE_S = TextConfig(tower="open_clip", model="PE-Core-S-16-384")
SAM2_TINY = replace(
    MOBILE,
    backbone=sam2.BACKBONE,
    text=PE_CORE_S,
    networks={"sam2": sam2.SIZES[96, (1, 2, 7, 2)]},
)
MODELS = {
    "C-RADIOv3-B at 512 px": RADIO,
    "MobileSAM and ViT-B/32": MOBILE,
    "EfficientViT-SAM-L0 and ViT-B/32": EFFICIENTVIT_L0,
    "EfficientViT-SAM-L0 and PE-Core-S/16": replace(EFFICIENTVIT_L0, text=PE_CORE_S),
    "SAM 2.1 tiny and PE-Core-S/16": SAM2_TINY,
}


def run(bench: Bench) -> list[Line]:
    """Measure all contenders in turns, after one run of each."""
    lines = list[Line]()
    for name, config in MODELS.items():
        with tempfile.TemporaryDirectory(prefix="samclip-bench-") as folder:
            calls = dict(_contenders(bench, config, Path(folder)))
            samples: dict[tuple[str, str], list[float]] = defaultdict(list)
            for number in range(bench.rounds + 1):
                bench.log(f"{name}: round {number}" if number else f"{name}: warm-up")
                for contender, call in calls.items():
                    wall, cpu = time.perf_counter(), time.process_time()
                    call()
                    samples[WALL, contender].append(1000 * (time.perf_counter() - wall))
                    samples[CPU, contender].append(1000 * (time.process_time() - cpu))
            made = {of: Line(of[0], name, of[1], "ms", ms[1:]) for of, ms in samples.items()}
            eager, ours = made[WALL, EAGER], made[WALL, OURS]
            lines += [*made.values(), ratio(name, f"{EAGER} / {OURS}", eager, ours)]
    return [*lines, _limit(bench.rounds)]


def _contenders(
    bench: Bench, config: SamClipConfig, directory: Path
) -> Iterator[tuple[str, Callable[[], object]]]:
    from samclip_core import engine
    from samclip_core.commands.export import export

    tiny.make_tiny_checkpoint(directory, **vars(config))
    export(directory)
    image = noise(config.image_size)
    for name in PRECISIONS:
        begin = time.perf_counter()
        try:
            loaded = engine.load(directory, dtype=PRECISIONS[name], engine=name, parts=PARTS[:1])
        except CheckpointError as error:
            bench.log(f"skipped: {name}: {error}")
            continue
        chosen = f"{loaded.names['image_encoder']} {loaded.dtype}"
        bench.log(f"{name}: {chosen}, loaded in {time.perf_counter() - begin:.1f} s")
        label = {"torch": EAGER, "auto": OURS}.get(name, chosen)
        yield label, partial(loaded.encode, *image)


def _limit(rounds: int) -> Line:
    """Return the float32 arithmetic that this processor does in a large product of matrices."""
    import torch

    matrix = torch.rand(SIDE, SIDE)
    rates = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        matrix @ matrix
        rates.append(2 * SIDE**3 / (time.perf_counter() - begin) / 1e9)
    return Line(WALL, "float32 product of matrices", "limit", "GFLOP/s", rates[1:])

"""A small SAM and a small CLIP in their official layouts, and their recipe."""

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from safetensors.torch import save_file

from samclip_core.config import VIT_B, TextConfig
from samclip_core.nn.clip_model import build_model
from tests import photographs
from tests.clip_models import ARCHITECTURE
from tests.official import small_sam, write
from tests.weights import seeded
from training.recipes import Recipe, Run, SamBatch, debug

FRAME, WIDTH = 64, 32
QUICK = {
    "model_cfg": ARCHITECTURE | {"quick_gelu": True},
    "preprocess_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.3, 0.2, 0.1]},
}
"""A CLIP with OpenAI's activation, another width than ViT-L/14's, and pixel statistics of its own.
"""


class Official(NamedTuple):
    """The photographs and the official files of a merge."""

    data: Path
    sam: Path
    clip: str

    def run(self, folder: Path, recipe: Recipe, **more: str) -> Run:
        (folder / "states").mkdir(parents=True, exist_ok=True)
        files = {"sam": str(self.sam), "clip": self.clip} | more
        common = {"data": str(self.data), "folder": folder / "states"}
        return Run(recipe=recipe, config=VIT_B, **common, **files)


def write_official(root: Path) -> Official:
    """Write the photographs and the files with seeded random weights."""
    photographs.write_training_sets(root / "sets")
    (root / "clip").mkdir()
    (root / "clip/open_clip_config.json").write_text(json.dumps(QUICK))
    text = TextConfig(tower="open_clip", model="clip", open_clip=QUICK)
    model = seeded(lambda: build_model(text), 0)
    save_file(model.state_dict(), root / "clip/open_clip_model.safetensors")
    sam = write(small_sam(FRAME, WIDTH), root, "sam.pth")
    return Official(root / "sets", sam, f"local-dir:{root / 'clip'}")


def recipe(**changes: object) -> Recipe:
    """Return a recipe with every loss and every kind of prompt, two steps a stage, in float32."""
    short = replace(debug().joint, save_every=2)
    return replace(
        debug(),
        name="tiny-vit",
        kind="vit-b",
        sam_teacher=None,
        **{"head_probing": short, "adaptation": short, "dtype": "float32"} | changes,
        photo_sides=(32, FRAME),
        adaptation_sides=(FRAME,),
        clip_images=4,
        named_images=4,
        sam_batch=SamBatch(images=4, prompts=2, rounds=3, corrected=1.0, refined=True),
    )

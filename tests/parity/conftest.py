"""Official models, and checkpoints that ``samclip convert`` makes from their files."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from segment_anything import SamPredictor
from skimage import data
from torch import nn

from samclip_core.commands.convert import convert
from samclip_core.model import SamClip
from tests.clip_models import add_small_clip
from tests.official import clip, small_sam, write

Photograph = Callable[[int, int], NDArray[np.uint8]]


class Small(NamedTuple):
    """A model, and the official models from whose weights it was converted."""

    model: SamClip
    predictor: SamPredictor
    clip: nn.Module
    clip_name: str


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Small:
    """Convert a model with SAM's frame, prompt encoder and mask decoder, and a tiny encoder."""
    return convert_small(tmp_path_factory, image_size=1024, width=256)


@pytest.fixture(scope="session")
def small_without_resizing(tmp_path_factory) -> Small:
    """Convert a model whose SAM frame equals CLIP's input size, so neither resizes a picture."""
    return convert_small(tmp_path_factory, image_size=64, width=32)


def convert_small(tmp_path_factory, image_size: int, width: int) -> Small:
    """Convert official models whose SAM frame and decoder have these sizes."""
    directory = tmp_path_factory.mktemp("official")
    clip_name = add_small_clip(directory)
    sam, clip_model = small_sam(image_size, width), clip(clip_name)
    files = write(sam, directory, "sam.pth"), write(clip_model, directory, "clip.bin")
    convert(files[0], f"{clip_name}:{files[1]}", directory / "pair")
    return Small(SamClip.load(directory / "pair"), SamPredictor(sam), clip_model, clip_name)


@pytest.fixture(scope="session")
def photograph() -> Photograph:
    """Return a function that resizes a photograph to (height, width), RGB uint8."""
    original = Image.fromarray(data.astronaut())
    return lambda height, width: np.asarray(original.resize((width, height)))


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield

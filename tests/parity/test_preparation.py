"""Pictures reach a pair's words as its page says: against open_clip's and transformers' own."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from skimage import data
from torch import Tensor

from samclip_core.commands import export
from samclip_core.commands.convert import convert
from samclip_core.model import SamClip
from samclip_core.nn.official_clip import load_official_clip
from tests.clip_models import INPUT, write_clip
from tests.converted import make_pair
from tests.official import small_sam, write
from tests.parity.test_transformers import clip_folder

transformers = pytest.importorskip("transformers")
FRAME = 512
LEVEL = 1 / 255
"""A grey level. Pillow rounds to whole ones after each of two passes, a pair does not."""
PHOTOGRAPHS = {"square": data.astronaut(), "wide": data.astronaut()[:352]}
"""Both as wide as the frame, which then does not resize them."""
MEAN, STD = [0.4, 0.5, 0.6], [0.3, 0.25, 0.2]
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def pair(folder: Path, **preprocess: object) -> Path:
    """Convert a small CLIP, whose page has ``preprocess`` in open_clip's terms."""
    page = write_clip(folder / "clip") / "open_clip_config.json"
    description = json.loads(page.read_text()) | {"preprocess_cfg": preprocess}
    page.write_text(json.dumps(description))
    return make_pair(write(small_sam(FRAME, 32), folder, "sam.pth"), folder / "pair")


def seen(model: SamClip, photograph: np.ndarray) -> Tensor:
    """Return the pixels 0..1 that the pair's image tower reads of a photograph."""
    prepared, head = model.prepare(photograph), model.net.clip_head
    size = prepared.geometry.input_height, prepared.geometry.input_width
    pixels_13SS = torch.from_numpy(prepared.pixels_3SS)[None].float()
    input_13LL = head.clip_input(pixels_13SS, torch.tensor([size]))
    return input_13LL[0] * head.pixel_std_311 / 255 + head.pixel_mean_311 / 255


def shown(input_3LL: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """Return the pixels 0..1 of a normalised input."""
    return input_3LL * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)


def assert_alike(ours_3LL: Tensor, theirs_3LL: Tensor, other_3LL: Tensor) -> None:
    """Compare pixels with those of the page's filter, and with those of another one."""
    assert apart(ours_3LL, theirs_3LL) < 1.1 * LEVEL
    assert apart(ours_3LL, other_3LL) > 5 * LEVEL


def apart(one_3LL: Tensor, other_3LL: Tensor) -> float:
    """Return the difference that 99 % of the pixels do not exceed."""
    return (one_3LL - other_3LL).abs().quantile(0.99).item()


def open_clips(photograph: np.ndarray, filter: str) -> Tensor:
    config = PreprocessCfg(INPUT, mean=MEAN, std=STD, interpolation=filter, resize_mode="squash")
    return image_transform_v2(config, is_train=False)(Image.fromarray(photograph))


@pytest.mark.parametrize(
    ("filter", "graphs"),
    [
        ("bicubic", False),
        ("bilinear", False),
        pytest.param("bilinear", True, marks=pytest.mark.slow),  # the filter that is not usual
    ],
)
def test_a_page_of_open_clip(tmp_path: Path, filter: str, graphs: bool):
    """Words are those of open_clip, and those of the graphs."""
    directory = pair(
        tmp_path, mean=MEAN, std=STD, interpolation=filter, resize_mode="squash", size=INPUT
    )
    model = SamClip.load(directory, engine="torch", dtype="float32")
    assert model.config.text.filter == filter
    (other,) = FILTERS.keys() - {filter}
    for photograph in PHOTOGRAPHS.values():
        ours_3LL = seen(model, photograph)
        theirs_3LL, other_3LL = (
            shown(open_clips(photograph, name), MEAN, STD) for name in (filter, other)
        )
        assert_alike(ours_3LL, theirs_3LL, other_3LL)
    models = [model]
    if graphs:
        assert export.main([str(directory)]) == 0
        models.append(SamClip.load(directory, engine="onnxruntime", dtype="float32"))
    tower = load_official_clip(f"local-dir:{tmp_path / 'clip'}").model
    photograph = PHOTOGRAPHS["wide"]
    with torch.inference_mode():
        inputs = torch.stack([open_clips(photograph, name) for name in (filter, other)])
        right_D, wrong_D = tower.encode_image(inputs, normalize=True).numpy()
    for one in models:
        ours_D = one.embed_image(photograph)
        assert 1 - ours_D @ right_D < 0.2 * (1 - ours_D @ wrong_D)


@pytest.mark.parametrize(
    ("kind", "filter", "version"),
    [
        ("CLIPImageProcessor", "bicubic", 4),
        ("CLIPImageProcessor", "bilinear", 5),
        ("SiglipImageProcessor", "bilinear", 4),
        ("SiglipImageProcessor", "bicubic", 5),
    ],
)
def test_a_page_of_transformers(tmp_path: Path, kind: str, filter: str, version: int):
    """CLIP's crops the centre, so that only square photographs are shown whole."""
    side = {"height": INPUT, "width": INPUT}
    crop = {"crop_size": side, "size": {"shortest_edge": INPUT}}
    sizes = crop if kind == "CLIPImageProcessor" else {"size": side}

    def processor(name: str) -> object:
        given = {"image_mean": MEAN, "image_std": STD, "resample": FILTERS[name]}
        return getattr(transformers, kind)(**given, **sizes)

    _, folder = clip_folder(tmp_path / "clip", "gelu")
    written = processor(filter).save_pretrained(folder)[0]
    content = json.loads(Path(written).read_text())
    if version == 5:
        Path(written).unlink()
        whole = {"image_processor": content, "processor_class": "CLIPProcessor"}
        (folder / "processor_config.json").write_text(json.dumps(whole))
    sam = write(small_sam(FRAME, 32), tmp_path, "sam.pth")
    convert(sam, f"local-dir:{folder}", tmp_path / "pair")
    model = SamClip.load(tmp_path / "pair", engine="torch", dtype="float32")
    (other,) = FILTERS.keys() - {filter}
    for photograph in list(PHOTOGRAPHS.values())[: 1 if sizes is crop else 2]:
        theirs_3LL, other_3LL = (
            shown(processor(name)(photograph, return_tensors="pt")["pixel_values"][0], MEAN, STD)
            for name in (filter, other)
        )
        assert_alike(seen(model, photograph), theirs_3LL, other_3LL)


def test_open_clips_default_is_bicubic(tmp_path: Path):
    """Its own evaluation of a page without a filter, and of one that varies it in training."""
    for index, preprocess in enumerate([{}, {"interpolation": "random"}]):
        model = SamClip.load(pair(tmp_path / str(index), **preprocess), engine="torch")
        config = PreprocessCfg(INPUT, **preprocess)
        transform = image_transform_v2(config, is_train=False)
        photograph = PHOTOGRAPHS["square"]
        theirs_3LL = transform(Image.fromarray(photograph))
        mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
        assert apart(seen(model, photograph), shown(theirs_3LL, mean, std)) < 1.1 * LEVEL

"""Image-text retrieval: recall at 1, 5 and 10 in both directions."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from samclip_core.model import SamClip
from training.evaluation.layouts import captioned
from training.evaluation.measures import ranks
from training.evaluation.suite import Metrics, Options, limited, own_samples, progress

FIRST = (1, 5, 10)
Described = tuple[Callable[[], bytes], list[str]]


def own_sets(model: SamClip, options: Options) -> Metrics:
    """Return recall on the captioned photographs of coco_multi."""
    samples = own_samples(options, "coco_multi", usable=lambda sample: sample.info["captions"])
    described = [(partial(bytes, sample.encoded), sample.info["captions"]) for sample in samples]
    return _recall(model, described, "coco_multi_")


def public(model: SamClip, options: Options) -> Metrics:
    """Return recall on Flickr30k or COCO captions (paper, table 1)."""
    chosen = limited(captioned(options.root), options.limit)
    return _recall(model, [(item.path.read_bytes, item.captions) for item in chosen], "")


def _recall(model: SamClip, described: Sequence[Described], prefix: str) -> Metrics:
    image_BD = np.stack([model.embed_image(read()) for read, _ in progress(described, "retrieval")])
    captions = [(image, text) for image, (_, texts) in enumerate(described) for text in texts]
    text_TD = model.embed_text([text for _, text in captions])
    image_T = np.array([image for image, _ in captions])
    rank_T, rank_B = ranks(text_TD @ image_BD.T, image_T)
    return {f"{prefix}text_to_image_r{k}": float((rank_T < k).mean()) for k in FIRST} | {
        f"{prefix}image_to_text_r{k}": float((rank_B < k).mean()) for k in FIRST
    }

"""A model for FiftyOne that asks a running service.

It works with ``dataset.apply_model`` and ``dataset.compute_embeddings``, and needs ``fiftyone``.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import fiftyone as fo
import fiftyone.core.models as fom
import numpy as np

import samclip

PROMPTS = "prompt_field"
"""The option of ``apply_model`` that names the field with points or boxes."""


class Model(fom.SamplesMixin, fom.EmbeddingsMixin, fom.PromptMixin, fom.Model):
    """Embeddings, and either classes, found objects or masks.

    client: of the service. labels: classify each image, as ``fo.Classification``. texts: find all
    objects that they describe. With neither, ``predict`` segments the objects of the field that
    ``prompt_field`` of ``apply_model`` names: boxes from ``fo.Detections``, points from
    ``fo.Keypoints``. Objects are ``fo.Detections`` with masks.
    """

    media_type, has_embeddings, can_embed_prompts, ragged_batches = "image", True, True, True
    transforms = None
    preprocess = False

    def __init__(
        self, client: samclip.Client, labels: Sequence[str] = (), texts: Sequence[str] = ()
    ) -> None:
        super().__init__()
        if labels and texts:
            raise ValueError("Model got both labels and texts: make two models")
        self.client, self.labels, self.texts = client, labels, texts

    def predict(self, arg: np.ndarray, sample: Any = None) -> fo.Label:
        """Return the label of an image, uint8 H×W×3; ``sample`` has its file and its fields."""
        # The file has the same key in every request, so its embedding is found in the cache.
        photo = self.client.image(arg if sample is None else sample.filepath)
        if self.labels:
            (best,) = photo.classify(self.labels, top_k=1)
            return fo.Classification(label=best.label, confidence=best.score)
        if self.texts:
            found = photo.segment(text=self.texts).things
            return fo.Detections(detections=[detection(best) for best, *_ in found])
        height, width = arg.shape[:2]
        wanted = [] if sample is None else sample[self.needs_fields[PROMPTS]]
        found = []
        for label, prompt in prompts(wanted, np.array([width, height])):
            found += [detection(mask, label) for mask in photo.segment(**prompt)]
        return fo.Detections(detections=found)

    def embed(self, arg: np.ndarray) -> np.ndarray:
        """Return the vector of an image, uint8 H×W×3, of length 1."""
        return self.client.image(arg).embed()

    def embed_prompt(self, arg: str) -> np.ndarray:
        """Return the vector of a text, in the space of the images' vectors."""
        return self.client.embed_text([arg])[0]


def detection(mask: samclip.Mask, label: str = "") -> fo.Detection:
    """Return a mask as FiftyOne's: relative to its box, which is relative to the image."""
    mask_HW, (left, top, right, bottom) = mask.array, map(int, mask.box)
    size_2 = np.array(mask_HW.shape[::-1])
    return fo.Detection(
        label=label or mask.label or "object",
        bounding_box=[*(left, top) / size_2, *(right - left, bottom - top) / size_2],
        mask=mask_HW[top:bottom, left:right],
        confidence=mask.score,
    )


def prompts(wanted: Any, size_2: np.ndarray) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the label and the prompt, in pixels, of each box or set of points of a field."""
    for box in getattr(wanted, "detections", None) or []:
        x, y, width, height = box.bounding_box
        corners = np.array([[x, y], [x + width, y + height]]) * size_2
        yield box.label, {"box": tuple(corners.ravel().tolist())}
    for one in getattr(wanted, "keypoints", None) or []:
        yield one.label, {"points": [tuple(p) for p in (np.array(one.points) * size_2).tolist()]}

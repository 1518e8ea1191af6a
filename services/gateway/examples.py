"""Requests in the OpenAPI document that the service answers."""

import base64
import io
from typing import Any

from PIL import Image


def _small_image() -> str:
    file = io.BytesIO()
    Image.radial_gradient("L").resize((64, 64)).quantize(4).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


SMALL, _COLLECTION = {"image": _small_image()}, {"collection": "example"}
EXAMPLES: dict[str, dict[str, Any]] = {
    "Embed": {**SMALL, "outputs": ["SAM"]},
    "Classify": {**SMALL, "labels": ["a ball", "a cat"], "areas": [[8, 8, 56, 56]]},
    "Segment": {
        **SMALL,
        "prompts": [
            {"points": [[32, 32]]},
            {"box": [8, 8, 56, 56]},
            {"text": "a ball", "not_texts": ["a moon"]},
        ],
        "min_score": 0.4,
    },
    "SegmentEverything": {**SMALL, "points_per_side": 4, "labels": ["a ball", "a cat"]},
    "SegmentText": {**SMALL, "labels": ["a ball", "a wall"]},
    "Explain": {**SMALL, "label": "a ball", "others": ["a wall"]},
    "Index": {**_COLLECTION, "items": [{"id": "ball", **SMALL, "metadata": {"by": "me"}}]},
    "Search": {**_COLLECTION, **SMALL, "area": [8, 8, 56, 56], "with_text": "a ball", "top_k": 3},
    "Delete": {**_COLLECTION, "ids": ["ball"]},
    "ListItems": {**_COLLECTION, "limit": 10},
    "PutConcept": {"name": "my ball", "examples": [{**SMALL, "box": [8, 8, 56, 56]}]},
    "DeleteConcept": {"name": "my ball"},
}
"""Requests that say more than the required fields; those of a collection follow
Index, and DeleteConcept follows PutConcept."""

"""What a labelling configuration asks for, and results in Label Studio's format.

Label Studio gives positions in percent of the image's sides.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self
from uuid import uuid4
from xml.etree import ElementTree

from samclip.v1 import samclip_pb2 as pb

from samclip_core.errors import InvalidRequest
from samclip_core.io import masks
from samclip_core.io.brush import encode_brush
from services.gateway.adapters.adapter import outlines
from services.request.limits import VALUE_BYTES, Reply, escaped

KINDS = ("BrushLabels", "PolygonLabels", "RectangleLabels", "KeyPointLabels")
"""Controls of regions, the one for answers first; the last one is only for clicks."""
MAX_CONFIG = 2**20  # characters


@dataclass(frozen=True)
class Control:
    """A control of the configuration: ``kind`` is its tag, ``values`` its labels or choices."""

    kind: str
    name: str
    to_name: str
    values: tuple[str, ...]

    @property
    def source(self) -> dict[str, Any]:
        """Return where a result belongs, in Label Studio's words."""
        return {"from_name": self.name, "to_name": self.to_name, "type": self.kind.lower()}


@dataclass(frozen=True)
class Task:
    """The controls for one image; ``field`` of a task's data has its address."""

    field: str
    answer: Control | None
    choices: Control | None

    @classmethod
    def read(cls, config: Any) -> Self:
        """Read a labelling configuration. Raises InvalidRequest."""
        if not isinstance(config, str) or len(config) > MAX_CONFIG or "<!D" in config.upper():
            raise InvalidRequest("label_config is not a labelling configuration: send its XML")
        try:
            root = ElementTree.fromstring(config)
        except ElementTree.ParseError as error:
            raise InvalidRequest(f"label_config is not XML: {error}") from error
        image = root.find(".//Image")
        if image is None:
            raise InvalidRequest("label_config has no Image: only images can be labelled")
        name = image.get("name", "")
        controls = {control.kind: control for control in _controls(root, name)}
        answers = [controls[kind] for kind in KINDS[:3] if kind in controls]
        field = image.get("value", "").removeprefix("$")
        return cls(field, answers[0] if answers else None, controls.get("Choices"))


def _controls(root: ElementTree.Element, image: str) -> Iterator[Control]:
    for tag, inner in (*((kind, "Label") for kind in KINDS), ("Choices", "Choice")):
        found = next((one for one in root.iter(tag) if one.get("toName") == image), None)
        if found is not None:  # of several, the first
            values = tuple(one.get("value", "") for one in found.iter(inner))
            yield Control(tag, found.get("name", ""), image, values)


def to_prompt(regions: Sequence[Any]) -> tuple[pb.Prompt, str]:
    """Return the prompt and the label of clicks and a rectangle. Raises InvalidRequest."""
    prompt, label = pb.Prompt(), ""
    for region in regions:
        try:
            value, kind = region["value"], region["type"]
            if not kind.startswith(("keypoint", "rectangle")):
                continue
            width, height = region["original_width"] / 100, region["original_height"] / 100
            x, y = value["x"] * width, value["y"] * height
            label = next(iter(value.get(kind, ())), label)
            if not isinstance(label, str):
                raise TypeError(f"{kind} are not texts")
            if kind.startswith("keypoint"):
                positive = region.get("is_positive", 1) in (1, "1", "true", "True")
                prompt.points.add(x=x, y=y, negative=not positive)
            else:
                x_max, y_max = x + value["width"] * width, y + value["height"] * height
                prompt.box.CopyFrom(pb.Box(x_min=x, y_min=y, x_max=x_max, y_max=y_max))
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise InvalidRequest(f"a region of the context is not understood: {error!r}") from error
    if not prompt.points and not prompt.HasField("box"):
        raise InvalidRequest("the context has neither a key point nor a rectangle")
    return prompt, label


def to_results(
    control: Control, label: str, mask: pb.Mask, image: pb.ImageInfo, size: Reply
) -> list[dict[str, Any]]:
    """Return the regions of one mask, counted: a brush, a rectangle, or a polygon for each part."""
    sides = {"original_width": image.width, "original_height": image.height, "image_rotation": 0}
    common = {**control.source, **sides, "score": mask.label_score or mask.predicted_iou}
    values = _values(control.kind, mask, image, size)
    size.add(len(values) * len(escaped(common | {"value": label})))
    return [
        {**common, "id": uuid4().hex[:10], "value": {**value, common["type"]: [label]}}
        for value in values
    ]


def _values(kind: str, mask: pb.Mask, image: pb.ImageInfo, size: Reply) -> list[Mapping[str, Any]]:
    if kind == "BrushLabels":
        runs = masks.decode_runs(mask.rle.counts, mask.rle.height, mask.rle.width)
        rle = [*encode_brush(runs)]
        size.add(8 * len(rle))  # slots of a list: small numbers are shared
        return [{"format": "rle", "rle": rle}]
    x, y = 100 / image.width, 100 / image.height
    if kind == "PolygonLabels":
        rings = [ring_N2.astype(float) * (x, y) for ring_N2 in outlines(mask)]
        size.add(VALUE_BYTES * sum(ring_N2.size for ring_N2 in rings))
        return [{"points": ring_N2.tolist(), "closed": True} for ring_N2 in rings]
    box = mask.box
    width, height = (box.x_max - box.x_min) * x, (box.y_max - box.y_min) * y
    return [{"x": box.x_min * x, "y": box.y_min * y, "width": width, "height": height}]


def field_of(task: Any, field: str) -> Any:
    """Return the image of a task. Raises InvalidRequest."""
    data = task.get("data") if isinstance(task, dict) else None
    if not isinstance(data, dict) or not re.fullmatch(r"\w+", field) or field not in data:
        raise InvalidRequest(f"a task has no image in its data: expected the field {field[:80]!r}")
    return data[field]

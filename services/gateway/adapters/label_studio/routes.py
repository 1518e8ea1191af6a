"""Label Studio's machine learning backend: regions for clicks, boxes, drawings and words; choices.

Label Studio gives positions in percent of the image's sides.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self
from uuid import uuid4
from xml.etree import ElementTree

from fastapi import FastAPI
from samclip.v1 import samclip_pb2 as pb
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from samclip_core.errors import InvalidRequest, KeyUnknown, NotFound
from samclip_core.io import masks
from samclip_core.io.brush import encode_brush
from samclip_core.io.image import image_key
from services.gateway.adapters.adapter import Adapter, Applications, best_of_each, outlines
from services.gateway.adapters.label_studio.drawing import Drawing
from services.gateway.adapters.label_studio.files import Files
from services.request import wire
from services.request.bodies import LongJSON
from services.request.context import RequestContext
from services.request.fan_out import each
from services.request.limits import VALUE_BYTES, Reply, check_images, check_most, to_json_text
from services.request.transit import aside, rendered

KINDS = ("BrushLabels", "PolygonLabels", "RectangleLabels", "KeyPointLabels")
"""Controls of regions, the one for answers first; the last one is only for clicks."""
MAX_CONFIG = 2**20  # characters
PREFIX = "/adapters/label-studio"
Answer = dict[str, Any]


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
        element = next((e for e in root.iter(tag) if e.get("toName") == image), None)
        if element is not None:  # of several, the first
            values = tuple(label.get("value", "") for label in element.iter(inner))
            yield Control(tag, element.get("name", ""), image, values)


def to_results(
    control: Control, label: str, mask: pb.Mask, image: pb.ImageInfo, size: Reply
) -> list[dict[str, Any]]:
    """Return the regions of one mask, counted: a brush, a rectangle, or a polygon for each part."""
    sides = {"original_width": image.width, "original_height": image.height, "image_rotation": 0}
    common = {**control.source, **sides, "score": mask.label_score or mask.predicted_iou}
    values = _values(control.kind, mask, image, size)
    size.add(len(values) * len(to_json_text(common | {"value": label})))
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


class LabelStudio(Adapter):
    """A backend for interactive labelling and for predictions of whole tasks."""

    name, hides_reasons = "LabelStudio", True

    def __init__(self, applications: Applications):
        super().__init__(applications)
        self.files = Files(applications.settings)

    def add_to(self, app: FastAPI) -> None:
        self.route(app, "GET", f"{PREFIX}/health", self.health)
        self.route(app, "POST", f"{PREFIX}/setup", self.setup)
        self.route(app, "GET", f"{PREFIX}/versions", self.versions)
        self.route(app, "POST", f"{PREFIX}/predict", self.predict)

    async def health(self, request: Request, context: RequestContext) -> Response:
        return JSONResponse({"status": "UP", "model_class": "SamClip"})

    async def setup(self, request: Request, context: RequestContext) -> Response:
        fields = await self.read(request, context)
        task = await aside(context.priority, Task.read, fields.get("schema"))
        model = await self.applications.find_model(context)
        if task.answer and model.without_masks:
            raise InvalidRequest(
                f"the checkpoint {model.name!r} makes no masks: use Choices alone, or serve "
                "another checkpoint"
            )
        return JSONResponse({"model_version": wire.model_id(model)})

    async def versions(self, request: Request, context: RequestContext) -> Response:
        names = [model.name for model in await self.applications.listed(context)]
        return JSONResponse({"versions": names})

    async def predict(self, request: Request, context: RequestContext) -> Response:
        fields = await self.read(request, context)
        task = await aside(context.priority, Task.read, fields.get("label_config"))
        if version := fields.get("model_version"):
            with suppress(NotFound):  # of a checkpoint that is served no more
                context = await self.applications.naming(version, context)
        tasks = fields.get("tasks")
        if not isinstance(tasks, list):
            raise InvalidRequest("tasks is not a list: send the tasks to predict")
        check_images(tasks, self.settings.max_images)
        regions = _regions(fields)
        check_most(len(regions), "{} regions of the context", self.settings.max_prompts)
        drawing = Drawing(self.settings.max_image_pixels)
        for region in regions:  # in steps: no more are made once nobody waits
            await aside(context.priority, drawing.add, region)
        clicked = await aside(context.priority, drawing.to_prompt) if regions else None
        searches = len(tasks) * len(task.answer.values if task.answer and not regions else ())
        check_most(searches, "{} labels of all tasks together", self.settings.max_labels)

        async def about(image: pb.Image) -> Answer:
            if clicked:
                return await self._clicked(task, image, *clicked, context)
            return await self._predicted(task, image, context)

        async def answered(given: Any) -> Answer:
            async with self.files.opened(field_of(given, task.field), context.priority) as image:
                key = await aside(context.priority, image_key, image.encoded)
                if key in sent:  # by another task
                    with suppress(KeyUnknown):
                        return await about(pb.Image(key=key))
                answer = await about(image)
                sent.add(key)
                return answer

        sent = set[str]()

        results = await each(answered, tasks)
        size = context.reply.reserved.bytes
        return await rendered(context.priority, size, lambda: LongJSON({"results": results}))

    async def _clicked(
        self, task: Task, image: pb.Image, prompt: pb.Prompt, label: str, context: RequestContext
    ) -> Answer:
        """Answer clicks, a rectangle and a drawing with the region of the object there."""
        if task.answer is None:
            raise InvalidRequest("label_config has no labels for an answer: add BrushLabels")
        reply = await self._segment(image, [prompt], task.answer, context)
        (mask,) = reply.results[0].masks
        regions = await aside(
            context.priority, to_results, task.answer, label, mask, reply.image, context.reply
        )
        return _prediction(regions, reply.model, mask.predicted_iou)

    async def _predicted(self, task: Task, image: pb.Image, context: RequestContext) -> Answer:
        """Return the likeliest of the task's choices, and the objects that its labels name."""
        if task.choices is None and task.answer is None:
            raise InvalidRequest("label_config has neither choices nor labels for the image")
        results, score, model = list[Answer](), 1.0, pb.ModelInfo()
        if task.choices:
            request = pb.ClassifyRequest(images=[image], labels=task.choices.values, top_k=1)
            chosen = await self.applications.call("Classify", request, context)
            best, model = chosen.results[0].scores[0], chosen.model
            choice = {"value": {"choices": [best.label]}, "score": best.score}
            results.append({**task.choices.source, **choice})
            score = best.score
        if task.answer:
            prompts = [pb.Prompt(text=label) for label in task.answer.values]
            reply = await self._segment(image, prompts, task.answer, context)
            self.applications.check_same([reply.model, *([model] if task.choices else [])])
            for label, result in zip(task.answer.values, reply.results, strict=True):
                for mask in best_of_each(result):
                    results += await aside(
                        context.priority,
                        to_results,
                        task.answer,
                        label,
                        mask,
                        reply.image,
                        context.reply,
                    )
                    score = min(score, mask.label_score)
            model = reply.model
        return _prediction(results, model, score)

    async def _segment(
        self,
        image: pb.Image,
        prompts: list[pb.Prompt],
        control: Control,
        context: RequestContext,
    ) -> Any:
        encoding = pb.POLYGONS if control.kind == "PolygonLabels" else pb.RLE
        request = pb.SegmentRequest(image=image, prompts=prompts, encoding=encoding)
        return await self.applications.call("Segment", request, context)


def _regions(fields: dict[str, Any]) -> list[Any]:
    """Return the regions that the annotator drew for this request; none without one."""
    params = fields.get("params")
    context = params.get("context") if isinstance(params, dict) else None
    regions = context.get("result") if isinstance(context, dict) else None
    return regions if isinstance(regions, list) else []


def _prediction(results: list[Answer], model: pb.ModelInfo, score: float) -> Answer:
    return {"result": results, "score": score, "model_version": wire.model_id(model)}

"""X-AnyLabeling's remote server: marks and text prompts to shapes."""

import reprlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import cv2
from fastapi import FastAPI
from samclip.v1 import samclip_pb2 as pb
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from samclip_core.errors import InvalidPrompt, InvalidRequest
from services.gateway.adapters.adapter import Adapter, best_of_each, image_of, outlines
from services.request import status
from services.request.bodies import LongJSON
from services.request.context import RequestContext
from services.request.limits import VALUE_BYTES, Reply, check_most, to_json_text
from services.request.transit import aside

PREFIX = "/adapters/x-anylabeling"
OBJECT = "AUTOLABEL_OBJECT"  # a label for which the client asks the annotator
WIDGETS = (
    "edit_text button_send button_add_point button_remove_point button_add_rect button_clear "
    "button_finish_object input_conf edit_conf mask_fineness_slider mask_fineness_value_label "
    "toggle_preserve_existing_annotations"
)
VALUES = {"edit_conf": 0.6, "mask_fineness_slider": 10}
MAX_CHARACTERS = 2**15  # of a text prompt
MODEL = {
    "batch_processing_mode": "text_prompt",
    "widgets": [{"name": name, "value": VALUES.get(name)} for name in WIDGETS.split()],
}
"""What the client shows for the model: its buttons and their values."""


class XAnyLabeling(Adapter):
    """The three routes that its remote-server client calls for images."""

    name, hides_reasons = "XAnyLabeling", True

    def add_to(self, app: FastAPI) -> None:
        self.route(app, "GET", f"{PREFIX}/health", self.health)
        self.route(app, "GET", f"{PREFIX}/v1/models", self.models)
        self.route(app, "POST", f"{PREFIX}/v1/predict", self.predict)

    def refuse(self, failure: status.Failure) -> dict[str, Any]:
        code = failure.status.title.upper().replace(" ", "_")
        return {"success": False, "error": {"code": code, "message": failure.message}}

    async def health(self, request: Request, context: RequestContext) -> Response:
        now = datetime.now(UTC).isoformat()
        return JSONResponse({"status": "healthy", "models_loaded": 1, "timestamp": now})

    async def models(self, request: Request, context: RequestContext) -> Response:
        default, *others = await self.applications.listed(context)
        default.name = (await self.applications.find_model(context)).name
        data = {}
        for model in (default, *others):
            shown = f"SAM-CLIP Serve: {model.name}" + (", no masks" if model.without_masks else "")
            data[model.name] = {"display_name": shown, **MODEL}
        return JSONResponse({"success": True, "data": data})

    async def predict(self, request: Request, context: RequestContext) -> Response:
        fields = await self.read(request, context)
        image = await aside(context.priority, image_of, fields.get("image"), "image")
        params = fields.get("params") or {}
        if not isinstance(params, dict):
            raise InvalidRequest("params is not an object: send the client's parameters")
        context = await self.applications.naming(fields.get("model"), context)
        marks = params.get("marks")
        most = self.settings.max_prompts
        prompts = to_prompts(marks, most) if marks else to_texts(params.get("text_prompt"), most)
        asked = pb.SegmentRequest(image=image, prompts=prompts, encoding=pb.POLYGONS)
        if (score := _number(params, "conf_threshold")) and not marks:
            asked.min_score = score
        fineness = _number(params, "epsilon_factor")
        shapes: list[dict[str, Any]] = []
        if prompts:
            reply = await self.applications.call("Segment", asked, context)
            self.applications.check(fields.get("model"), reply.model, context)
            shapes = await aside(
                context.priority, to_shapes, prompts, reply.results, fineness, context.reply
            )
        data = {"shapes": shapes, "description": "", "replace": False if marks else None}
        return await aside(context.priority, LongJSON, {"success": True, "data": data})


def _number(params: dict[str, Any], name: str) -> float:
    value = params.get(name, 0)
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InvalidRequest(f"{name} is {reprlib.repr(value)}, expected 0 to 1")
    return float(value)


def to_prompts(marks: Any, most: int) -> list[pb.Prompt]:
    """Return a prompt for each rectangle, all with the points, or one of the points alone."""
    points, boxes = [], []
    try:
        check_most(len(marks), "{:,} marks", most, error=InvalidPrompt)
        for mark in marks:
            numbers, positive = mark["data"], bool(mark.get("label", 1))
            if mark["type"] == "point":
                x, y = numbers
                points.append(pb.Point(x=x, y=y, negative=not positive))
            elif mark["type"] == "rectangle" and positive:
                x_min, y_min, x_max, y_max = numbers
                boxes.append(pb.Box(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max))
            else:
                raise InvalidPrompt("marks are points, and rectangles around an object")
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise InvalidPrompt(f"a mark is not understood: {error!r}") from error
    return [pb.Prompt(points=points, box=box) for box in boxes] or [pb.Prompt(points=points)]


def to_texts(text: Any, most: int) -> list[pb.Prompt]:
    """Return a prompt for each phrase between full stops or commas."""
    text = text or ""
    if not isinstance(text, str) or len(text) > MAX_CHARACTERS:
        raise InvalidPrompt(f"text_prompt is not a string of at most {MAX_CHARACTERS:,} characters")
    phrases = dict.fromkeys(filter(None, map(str.strip, text.replace(",", ".").split("."))))
    check_most(len(phrases), "{} phrases in text_prompt", most, error=InvalidPrompt)
    return [pb.Prompt(text=phrase) for phrase in phrases]


def to_shapes(
    prompts: Sequence[pb.Prompt], results: Sequence[pb.PromptResult], fineness: float, size: Reply
) -> list[dict[str, Any]]:
    """Return polygons, counted; ``fineness`` of their perimeter is their distance from the mask."""
    shapes = []
    for prompt, result in zip(prompts, results, strict=True):
        for mask in best_of_each(result):
            score = mask.label_score if prompt.text else mask.predicted_iou
            for ring_N2 in outlines(mask):
                near = fineness * cv2.arcLength(ring_N2, closed=True)
                points_N2 = cv2.approxPolyDP(ring_N2, near, closed=True).reshape(-1, 2)
                if len(points_N2) < 3:
                    continue
                size.add(len(to_json_text(prompt.text)) + VALUE_BYTES * points_N2.size)
                points = [*points_N2.tolist(), points_N2[0].tolist()]  # closed
                shape = {"label": prompt.text or OBJECT, "shape_type": "polygon", "points": points}
                shapes.append({**shape, "score": min(max(score, 0.0), 1.0)})
    return shapes

"""Label Studio's machine learning backend: clicks, boxes and words to regions and choices."""

import asyncio
from contextlib import suppress
from typing import Any

from fastapi import FastAPI
from samclip.v1 import samclip_pb2 as pb
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from samclip_core.errors import InvalidRequest, KeyUnknown
from samclip_core.io.image import image_key
from services.gateway.adapters.adapter import Adapter
from services.gateway.adapters.applications import Applications
from services.gateway.adapters.label_studio import labels
from services.gateway.adapters.label_studio.files import Files
from services.gateway.adapters.label_studio.labels import Control, Task
from services.request import wire
from services.request.bodies import LongJSON
from services.request.context import RequestContext
from services.request.fan_out import each
from services.request.limits import check_images, check_most
from services.request.transit import rendered

PREFIX = "/adapters/label-studio"
Answer = dict[str, Any]


class LabelStudio(Adapter):
    """A backend for interactive labelling and for predictions of whole tasks."""

    name, hides_reasons = "LabelStudio", True

    def __init__(self, applications: Applications):
        super().__init__(applications)
        self.files = Files(applications.settings)

    def add_to(self, app: FastAPI) -> None:
        self.route(app, "GET", f"{PREFIX}/health", self.health)
        self.route(app, "POST", f"{PREFIX}/setup", self.setup)
        self.route(app, "POST", f"{PREFIX}/predict", self.predict)

    async def health(self, request: Request, context: RequestContext) -> Response:
        return JSONResponse({"status": "UP", "model_class": "SamClip"})

    async def setup(self, request: Request, context: RequestContext) -> Response:
        fields = await self.read(request)
        task = await asyncio.to_thread(Task.read, fields.get("schema"))
        model = await self.applications.find_model(context)
        if task.answer and model.without_masks:
            raise InvalidRequest(
                f"the checkpoint {model.name!r} makes no masks: use Choices alone, or serve "
                "another checkpoint"
            )
        return JSONResponse({"model_version": wire.model_id(model)})

    async def predict(self, request: Request, context: RequestContext) -> Response:
        fields = await self.read(request)
        task = await asyncio.to_thread(Task.read, fields.get("label_config"))
        tasks = fields.get("tasks")
        if not isinstance(tasks, list):
            raise InvalidRequest("tasks is not a list: send the tasks to predict")
        check_images(tasks, self.settings.max_images)
        regions = _regions(fields)
        check_most(len(regions), "{} regions of the context", self.settings.max_prompts)
        clicked = labels.to_prompt(regions) if regions else None
        searches = len(tasks) * len(task.answer.values if task.answer and not regions else ())
        check_most(searches, "{} labels of all tasks together", self.settings.max_labels)

        async def about(image: pb.Image) -> Answer:
            if clicked:
                return await self._clicked(task, image, *clicked, context)
            return await self._predicted(task, image, context)

        async def one(given: Any) -> Answer:
            async with self.files.opened(labels.field_of(given, task.field)) as image:
                key = await asyncio.to_thread(image_key, image.encoded)
                if key in sent:  # by another task
                    with suppress(KeyUnknown):
                        return await about(pb.Image(key=key))
                answer = await about(image)
                sent.add(key)
                return answer

        sent = set[str]()

        results = await each(one, tasks)
        return await rendered(context.reply.place.bytes, lambda: LongJSON({"results": results}))

    async def _clicked(
        self, task: Task, image: pb.Image, prompt: pb.Prompt, label: str, context: RequestContext
    ) -> Answer:
        """Answer clicks and a rectangle with the region of the object there."""
        if task.answer is None:
            raise InvalidRequest("label_config has no labels for an answer: add BrushLabels")
        reply = await self._segment(image, [prompt], task.answer, context)
        (mask,) = reply.results[0].masks
        found = await asyncio.to_thread(
            labels.to_results, task.answer, label, mask, reply.image, context.reply
        )
        return _prediction(found, reply.model, mask.predicted_iou)

    async def _predicted(self, task: Task, image: pb.Image, context: RequestContext) -> Answer:
        """Choose a choice, and find the objects that the labels name."""
        if task.choices is None and task.answer is None:
            raise InvalidRequest("label_config has neither choices nor labels for the image")
        found, score, model = [], 1.0, pb.ModelInfo()
        if task.choices:
            request = pb.ClassifyRequest(images=[image], labels=task.choices.values, top_k=1)
            chosen = await self.applications.call("Classify", request, context)
            best, model = chosen.results[0].scores[0], chosen.model
            choice = {"value": {"choices": [best.label]}, "score": best.score}
            found.append({**task.choices.source, **choice})
            score = best.score
        if task.answer:
            prompts = [pb.Prompt(text=label) for label in task.answer.values]
            reply = await self._segment(image, prompts, task.answer, context)
            for label, result in zip(task.answer.values, reply.results, strict=True):
                for mask in result.masks:
                    found += await asyncio.to_thread(
                        labels.to_results, task.answer, label, mask, reply.image, context.reply
                    )
                    score = min(score, mask.label_score)
            model = reply.model
        return _prediction(found, model, score)

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
    found = context.get("result") if isinstance(context, dict) else None
    return found if isinstance(found, list) else []


def _prediction(found: list[Answer], model: pb.ModelInfo, score: float) -> Answer:
    return {"result": found, "score": score, "model_version": wire.model_id(model)}

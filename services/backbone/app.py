"""The backbone as a Serve application: images and texts to embeddings."""

import hashlib
from functools import partial
from typing import TYPE_CHECKING, Any

from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers.request import check_sam_layout
from samclip_core.engine import sam_layout
from samclip_core.errors import CheckpointError, NotFound
from samclip_core.io import checkpoint
from services.backbone.embedder import Embedder
from services.batching.priority import Priority
from services.cache.embedding_cache import SingleFlight
from services.cache.memory import MemoryTier
from services.deployment import replica
from services.observability import metrics
from services.request import wire
from services.request.context import RequestContext
from services.request.fan_out import together
from services.request.limits import check_texts
from services.request.rpc import Service
from services.request.transit import rendered
from services.settings import Settings, SettingsError

if TYPE_CHECKING:
    from ray.serve import Application

    from samclip_core.model import SamClip


GRAPHS_FACTOR, TORCH_FACTOR = 4.3, 2.3
"""Memory of a model that has answered, per byte of its files, measured with `edge` in float32 after
another one was loaded: 4.3 with OpenVINO and 2.4 with ONNX Runtime, of which a load chooses one,
and 2.3 with PyTorch. Weights are in memory as they are stored and as the runtime arranges them."""


class Backbone(Service):
    """Runs the image encoder and the text encoder: those of ``model``, or of the settings."""

    name = "BackboneService"
    application = "backbone"
    tunable = (*Service.tunable, "max_batch_size", "batch_wait_ms", "max_prompt_batch")

    def __init__(
        self,
        settings: Settings,
        model: "SamClip | None" = None,
        memory: MemoryTier | None = None,
    ):
        super().__init__(settings)
        cold = model is None
        model = model or replica.model(settings)
        self.model = pb.ModelInfo(
            name=model.config.name,
            digest=model.digest,
            kind=model.config.kind,
            uncalibrated=model.config.uncalibrated,
            without_masks=not model.config.masks,
            demonstration=model.demonstration,
            image_size=model.config.image_size,
            squash=model.config.squash,
            sure=model.config.sure,
            dtype=model.dtype,
            graphs=model.graphs,
        )
        self.config, self._decoder = model.config, pb.GetDecoderResponse()
        self._making = SingleFlight[None]()
        self.embedder = Embedder(model, settings, memory)
        if cold:
            self.embedder.warm_up()

    @classmethod
    def shared(cls, settings: Settings) -> dict[str, Any]:
        return {"memory": MemoryTier(settings.cache_bytes)}

    @classmethod
    def expected_bytes(cls, settings: Settings) -> int:
        directory = checkpoint.resolve(settings.checkpoint)
        compiled = settings.device == "cpu" and checkpoint.graphs(directory)
        files = sum(file.stat().st_size for file in directory.iterdir() if file.is_file())
        return round(files * (GRAPHS_FACTOR if compiled else TORCH_FACTOR))

    def tune(self, settings: Settings) -> None:
        _check(settings)
        super().tune(settings)
        self.embedder.tune(settings)

    async def check_health(self) -> None:
        await super().check_health()
        metrics.measure_memory(self.settings.device)
        await self.embedder.probe.check()

    async def health(self) -> dict[str, Any]:
        await self.embedder.probe.check()
        memory = self.embedder.cache.memory
        return {
            **await super().health(),
            "engine": self.embedder.about,
            "queue": len(self.embedder.queue),
            "cache": {"bytes": memory.size, "capacity": memory.capacity},
            "redis": await self.embedder.cache.state(),
        }

    async def close(self) -> None:
        await super().close()
        await self.embedder.close()

    async def Embed(self, request: pb.EmbedRequest, context: RequestContext) -> pb.EmbedResponse:
        """Return the outputs of an image file or key, and the rows of the texts beside it.

        Raises the errors of ``Embedder.embed`` and ``embed_text``, and those of the checks here.
        """
        outputs = wire.to_outputs(request.outputs, not self.model.without_masks)
        source = wire.image_source(request.image, self.settings.max_image_bytes)
        if request.texts:
            check_texts(request.texts, self.settings.max_labels)
        embedding = self.embedder.embed(context, source, outputs, request.size)
        texts = None
        if request.texts:
            embedded, text_TD = await together(
                embedding, self.embedder.embed_text(context, request.texts)
            )
            texts = wire.to_tensor(text_TD)
        else:
            embedded = await embedding
        tensors = [
            wire.to_embedding(output, embedded.entries[output], request.inline)
            for output in outputs
        ]
        return pb.EmbedResponse(
            image=wire.image_info(embedded.key, embedded.geometry, embedded.cached),
            tensors=tensors,
            cached=embedded.cached,
            model=self.model,
            texts=texts,
        )

    async def EmbedText(
        self, request: pb.EmbedTextRequest, context: RequestContext
    ) -> pb.EmbedTextResponse:
        """Return one row per text. Raises InvalidLabels and the errors of ``embed_text``."""
        check_texts(request.texts, self.settings.max_labels)
        text_TD = await self.embedder.embed_text(context, request.texts)
        return pb.EmbedTextResponse(tensor=wire.to_tensor(text_TD), model=self.model)

    async def GetDecoder(
        self, request: pb.GetDecoderRequest, context: RequestContext
    ) -> pb.GetDecoderResponse:
        """Return the mask decoder, which is made once. Raises InvalidRequest, NotFound."""
        check_sam_layout(self.config)
        if not self._decoder.digest:
            await self._making.run("decoder", self._make_decoder)
        if request.known == self._decoder.digest:
            return pb.GetDecoderResponse(digest=request.known, model=self.model)
        return self._decoder

    async def _make_decoder(self) -> None:
        directory = checkpoint.resolve(self.settings.checkpoint)
        try:
            make = partial(sam_layout.decoder, directory, self.model.digest)
            made = await rendered(Priority(), sam_layout.MOST_BYTES, make)
        except (CheckpointError, OSError) as error:
            raise NotFound(
                f"the model {self.model.name!r} has no decoder to download: export its checkpoint "
                "with `samclip export CHECKPOINT`, or export it again if it was changed"
            ) from error
        digest = hashlib.sha256(made).hexdigest()
        self._decoder = pb.GetDecoderResponse(onnx=made, digest=digest, model=self.model)

    async def ListModels(
        self, request: pb.ListModelsRequest, context: RequestContext
    ) -> pb.ListModelsResponse:
        """Return this model, for a process that has no other: an ingress lists all of its own."""
        about = pb.ServedModel(
            name=self.settings.default,
            digest=self.model.digest,
            kind=self.model.kind,
            default=True,
            state="loaded",
            without_masks=self.model.without_masks,
            uncalibrated=self.model.uncalibrated,
            demonstration=self.model.demonstration,
        )
        return pb.ListModelsResponse(models=[about])


def build(settings: Settings) -> "Application":
    """Return the application for ``serve.run``. Raises SettingsError if batches cannot fill."""
    _check(settings)
    return replica.deploy(Backbone, settings, gpus=0.5)


def _check(settings: Settings) -> None:
    replica.check_batch("max_batch_size", settings.max_batch_size)
    replica.check_batch("max_prompt_batch", settings.max_prompt_batch)
    if settings.max_batch_size > settings.max_queue:
        raise SettingsError(
            f"max_batch_size is {settings.max_batch_size}, but at most {settings.max_queue} images "
            "may wait for a batch: choose a smaller max_batch_size or a larger max_queue"
        )

"""The rpc that adds items to a collection: images to embed, or vectors of this model."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers import stored_objects as objects
from samclip_core.answers.steps import Terms
from samclip_core.answers.tiles import Tiling, check_tiles, is_tiled
from samclip_core.answers.zero_shot import pooled
from samclip_core.errors import InvalidRequest, KeyUnknown, Unavailable
from services.heads.runner import Runner
from services.request.context import RequestContext
from services.request.fan_out import each
from services.request.limits import MAX_ITEMS, check_images
from services.retrieval.checks import check_item, check_vector, check_vectors, lengths
from services.retrieval.concept_rpcs import ConceptRpcs
from services.retrieval.find_objects import PackedObjects
from services.retrieval.rows import Item, to_vector
from services.retrieval.tables import MAX_ID

ITEMS_PER_CALL = 100
"""Items that take the time of a small call to add."""
NO_MASKS = Terms(0, 0, 1)
"""Thresholds of programs that never ask for masks: none apply."""


class _Made(NamedTuple):
    """An item to store, and the precision of its vector."""

    item: Item
    dtype: str


class IndexRpc(ConceptRpcs):
    """Makes items from images or vectors, and stores them."""

    async def Index(self, request: pb.IndexRequest, context: RequestContext) -> pb.IndexResponse:
        """Add images or vectors to a collection; an item that fails is an error in the answer.

        Needs CLIP_POOLED of images, and REGIONS for objects. Raises InvalidRequest, the errors of
        the index, and those of the backbone that no single item caused.
        """
        check_images(request.items, MAX_ITEMS)
        check_tiles(request.tiles, self.settings.max_tiles)
        if is_tiled(request.tiles) and not request.objects:
            raise InvalidRequest("tiles are searched for objects: send objects, or leave out tiles")
        name, ids = request.collection, {item.id for item in request.items}
        with_objects = {item.id for item in request.items if request.objects or item.objects}
        if with_objects:
            PackedObjects().check_outputs(self.config)
        least = len(with_objects)  # objects; their number is checked once known
        await self.ask_index(
            context, lambda ours: ours.check_addable(name, ids, self.settings, least)
        )
        first = {item.id: number for number, item in reversed([*enumerate(request.items)])}
        numbered = [(item, first[item.id] != number) for number, item in enumerate(request.items)]
        if request.HasField("made_by") or any(
            item.vector or item.objects for item in request.items
        ):
            check_vectors(request, self.model)
            given = self._given(request, numbered)
            made = await self.workers.drain(context.priority, "encode", given)
        else:
            made = await each(lambda one: self._item(context, *one, request), numbered)
        items = [item for item in made if isinstance(item, _Made)]
        replaced = 0
        if items:
            model = request.made_by if request.HasField("made_by") else self.model
            replaced = await self._upsert(context, model, name, items)
        errors = [error for error in made if isinstance(error, pb.ItemError)]
        return pb.IndexResponse(indexed=len(items), errors=errors, replaced=replaced)

    async def _item(
        self, context: RequestContext, item: pb.IndexItem, repeated: bool, request: pb.IndexRequest
    ) -> _Made | pb.ItemError:
        """Embed an item; return it, or its error. Errors of the service are raised."""
        try:
            self._check(item, repeated)
            vector_D, dtype = await self._embed(context, item.image)
            packed = b""
            if request.objects:
                packed = await self._objects(context, item.image, request.tiles)
        except (InvalidRequest, KeyUnknown) as error:
            return pb.ItemError(id=item.id[:MAX_ID], message=str(error))
        return _Made(Item(item.id, vector_D, dict(item.metadata), packed), dtype)

    def _given(
        self, request: pb.IndexRequest, numbered: Sequence[tuple[pb.IndexItem, bool]]
    ) -> Iterator[_Made | pb.ItemError]:
        """Yield each item that has a vector, or its error."""
        vectors = [item.vector for item in request.items]
        found = zip(numbered, vectors, lengths(vectors, self.config.text_dim), strict=True)
        for (item, repeated), vector, length in found:
            packed = item.objects  # each access copies it
            try:
                self._check(item, repeated)
                check_vector(vector, self.config.text_dim, length)
                if packed:
                    self._check_objects(packed)
            except InvalidRequest as error:
                yield pb.ItemError(id=item.id[:MAX_ID], message=str(error))
            else:
                stored = Item(item.id, to_vector(vector), dict(item.metadata), packed)
                yield _Made(stored, request.made_by.dtype)

    def _check(self, item: pb.IndexItem, repeated: bool) -> None:
        if repeated:
            raise InvalidRequest(
                f"an earlier item of the request also has the id {item.id[:MAX_ID]!r}: give "
                "each item a unique id"
            )
        check_item(item.id, item.metadata, self.settings.max_metadata_bytes)

    def _check_objects(self, packed: bytes) -> None:
        """Raise InvalidRequest for objects that cannot be searched and drawn.

        Their sizes are those of this model and within the limits, and their numbers in range. That
        this model has found them cannot be checked.
        """
        try:
            found = objects.Objects(packed, self.config.text_dim)
            config = self.config
            found.check(self.settings.max_image_pixels, config.image_size, config.logits_side)
        except ValueError as error:
            raise InvalidRequest(
                f"the objects cannot be searched ({error}): send those that samclip batch "
                "--regions has found with this model, or none"
            ) from error

    async def _objects(self, context: RequestContext, image: pb.Image, tiles: int) -> bytes:
        """Return the objects of an image and of its tiles, packed."""
        asked = PackedObjects(Tiling(tiles, self.settings.max_tiles))
        work = partial(self.workers.run_steps, context.priority, "encode")
        runner = Runner(self, context, image, asked.program(self.config, NO_MASKS), work)
        await runner.begin()
        return await runner.result()

    async def _embed(
        self, context: RequestContext, image: pb.Image
    ) -> tuple[NDArray[np.float32], str]:
        """Return the vector of an image, and the precision that it was computed in."""
        _, features = await self.backbone.features(
            context, image, pb.CLIP_POOLED, size=self.config.size_of("retrieval")
        )
        return pooled(features), features.dtype

    async def _upsert(
        self, context: RequestContext, model: pb.ModelInfo, name: str, made: Sequence[_Made]
    ) -> int:
        """Add items, together with those of others for the same collection; return the replaced."""
        dtypes = sorted({dtype for _, dtype in made})
        if len(dtypes) > 1:
            raise Unavailable(
                f"replicas of the backbone compute in {' and '.join(dtypes)}, and a collection "
                "cannot mix precisions: set SAMCLIP_DTYPE to one of these for all replicas"
            )
        tenant, digest, dtype = context.caller.tenant, model.digest + model.graphs, dtypes[0]

        def add(together: Sequence[Sequence[Item]]) -> list[int]:
            ours = self.every_tenants().of_tenant(tenant).of_model(digest, self.config.text_dim)
            return ours.add_together(name, dtype, together, self.settings)

        items, alike = [item for item, _ in made], (tenant, name, digest, dtype)
        work = 1 + len(items) / ITEMS_PER_CALL
        return await self.index.add(context.priority, alike, items, add, work)

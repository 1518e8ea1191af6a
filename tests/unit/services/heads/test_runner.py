"""Pictures whose tiles are not cached are decoded once per request, whoever has sent them."""

from types import SimpleNamespace
from typing import Any

import pytest
from samclip.v1 import samclip_pb2 as pb

from samclip_core import SamClip
from samclip_core.io import image
from services.backbone.app import Backbone
from services.batching.priority import Priority
from services.heads import runner
from services.heads.semantic.app import Semantic
from services.local import Direct
from services.request.context import Caller, RequestContext
from services.settings import Settings
from tests.unit.services.test_tenants import LABELS, large


@pytest.mark.parametrize("kept_bytes", [2**26, 0])
async def test_a_picture_is_decoded_once_per_request(
    settings: Settings, tiny_model: SamClip, cold: None, monkeypatch, kept_bytes: int
) -> None:
    """Also if another tenant has sent it before, and if its tiles are kept no more."""
    caches = {"cache_bytes": kept_bytes, "head_cache_bytes": kept_bytes}
    settings = settings.model_copy(update=caches)
    backbone = Backbone(settings, tiny_model)
    head = Semantic(settings, peer=Direct(backbone), sam_head=tiny_model.sam_head)
    decoded = list[bytes]()

    def decode(encoded: bytes, limits: Any) -> Any:
        decoded.append(encoded)
        return image.decode(encoded, limits)

    ours = SimpleNamespace(decode=decode, encode_png=image.encode_png)
    monkeypatch.setattr(runner, "pixels", ours)
    request = pb.SegmentTextRequest(image=large(0), labels=LABELS, tiles=2)
    counts = []
    for tenant in ("ann", "bob", "ann"):
        decoded.clear()
        caller = Caller(tenant, tenant, frozenset({"read"}))
        context = RequestContext(caller=caller, priority=Priority(tenant=tenant))
        await head.answer("SegmentText", request, context)
        counts.append(len(decoded))
    assert counts == ([1, 1, 0] if kept_bytes else [1, 1, 1])
    await head.close()
    await backbone.close()

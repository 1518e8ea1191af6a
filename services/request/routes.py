"""Who answers what: gRPC services, and the POST routes of HTTP with the rpc behind each."""

from dataclasses import dataclass

from google.protobuf.message import Message
from samclip.v1 import samclip_pb2 as pb

SERVICES = {
    "samclip.v1.BackboneService": "backbone",
    "samclip.v1.ClassificationService": "classification",
    "samclip.v1.SegmentationService": "segmentation",
    "samclip.v1.SemanticSegmentationService": "semantic",
    "samclip.v1.RetrievalService": "retrieval",
}
"""The application that answers each gRPC service; haproxy.cfg has the same list."""


@dataclass(frozen=True)
class Route:
    """One rpc at one path. Where a path has several, the body's fields tell which is meant."""

    path: str
    rpc: str
    request: type[Message]
    response: type[Message]
    summary: str


ROUTES: dict[str, tuple[Route, ...]] = {
    "classification": (
        Route(
            "/classify",
            "Classify",
            pb.ClassifyRequest,
            pb.ClassifyResponse,
            "What is this? The labels, likeliest first.",
        ),
    ),
    "segmentation": (
        Route(
            "/segment",
            "Segment",
            pb.SegmentRequest,
            pb.SegmentResponse,
            "Where is it? Masks of what points, a box or a text ask for.",
        ),
        Route(
            "/everything",
            "SegmentEverything",
            pb.SegmentEverythingRequest,
            pb.SegmentEverythingResponse,
            "Masks of all that there is, named with labels where some are given.",
        ),
    ),
    "semantic": (
        Route(
            "/semantic",
            "SegmentText",
            pb.SegmentTextRequest,
            pb.SegmentTextResponse,
            "Which pixel is what? A region for each label; a picture with Accept: image/png.",
        ),
    ),
    "retrieval": (
        Route(
            "/index",
            "Index",
            pb.IndexRequest,
            pb.IndexResponse,
            "Put images into a collection.",
        ),
        Route(
            "/search",
            "Search",
            pb.SearchRequest,
            pb.SearchResponse,
            "The images of a collection that are nearest to a text, an image or an id.",
        ),
        Route(
            "/delete",
            "Delete",
            pb.DeleteRequest,
            pb.DeleteResponse,
            "Take images out of a collection by ids, or with all remove the whole collection.",
        ),
        Route(
            "/describe",
            "Describe",
            pb.DescribeRequest,
            pb.DescribeResponse,
            "How much the collections hold, and of which model.",
        ),
        Route(
            "/items",
            "ListItems",
            pb.ListItemsRequest,
            pb.ListItemsResponse,
            "The ids and metadata of a collection, page by page.",
        ),
    ),
    "backbone": (
        Route(
            "/embed",
            "Embed",
            pb.EmbedRequest,
            pb.EmbedResponse,
            "The embeddings of an image; with texts instead, theirs.",
        ),
        Route(
            "/embed",
            "EmbedText",
            pb.EmbedTextRequest,
            pb.EmbedTextResponse,
            "The embeddings of texts.",
        ),
    ),
}

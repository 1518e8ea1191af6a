"""The one table of routes: the applications, their gRPC services, and the POST route of each rpc.

The Serve applications, the servicers and the OpenAPI document are made from it. Tests check that
HAProxy's rules and ``deploy/serve_config.yaml`` say the same.
"""

from dataclasses import dataclass

from google.protobuf.message import Message
from samclip.v1 import samclip_pb2 as pb


@dataclass(frozen=True)
class Route:
    """One rpc at one path. Where a path has several, the fields of the body select the rpc."""

    path: str
    rpc: str
    request: type[Message]
    response: type[Message]
    summary: str


@dataclass(frozen=True)
class Application:
    """An application of Serve: ``module`` has its ``build``, ``service`` is in samclip.proto."""

    module: str
    service: str
    routes: tuple[Route, ...]


APPLICATIONS = {
    "backbone": Application(
        "services.backbone.app",
        "BackboneService",
        (
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
    ),
    "classification": Application(
        "services.heads.classification.app",
        "ClassificationService",
        (
            Route(
                "/classify",
                "Classify",
                pb.ClassifyRequest,
                pb.ClassifyResponse,
                "What is this? The labels, likeliest first.",
            ),
        ),
    ),
    "segmentation": Application(
        "services.heads.segmentation.app",
        "SegmentationService",
        (
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
    ),
    "semantic": Application(
        "services.heads.semantic.app",
        "SemanticSegmentationService",
        (
            Route(
                "/semantic",
                "SegmentText",
                pb.SegmentTextRequest,
                pb.SegmentTextResponse,
                "Which pixel is what? A region for each label; a picture with Accept: image/png.",
            ),
        ),
    ),
    "retrieval": Application(
        "services.retrieval.app",
        "RetrievalService",
        (
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
    ),
}
"""By the name in Serve, which is the name in the header ``application`` as well."""

MODULES = {name: application.module for name, application in APPLICATIONS.items()} | {
    "gateway": "services.gateway.app"
}
"""Of every application: the gateway has the pages, and no rpc of its own."""
ROUTES = {name: application.routes for name, application in APPLICATIONS.items()}
SERVICES = {f"samclip.v1.{each.service}": name for name, each in APPLICATIONS.items()}
"""The application that answers each gRPC service."""
SERVICERS = [
    *(
        f"samclip.v1.samclip_pb2_grpc.add_{each.service}Servicer_to_server"
        for each in APPLICATIONS.values()
    ),
    "grpc_health.v1.health_pb2_grpc.add_HealthServicer_to_server",
]
"""What Serve's gRPC proxy answers, as it takes it."""

"""The table of routes: the applications, their gRPC services, and the POST route of each rpc.

The Serve applications, the servicers and the OpenAPI document are generated from it. Tests check
that HAProxy's rules and ``deploy/serve_config.yaml`` agree with it.
"""

from dataclasses import dataclass

from google.protobuf.message import Message
from samclip.v1 import samclip_pb2 as pb


@dataclass(frozen=True)
class Route:
    """One rpc at one path. If several rpcs share a path, the fields of the body select one."""

    path: str
    rpc: str
    request: type[Message]
    response: type[Message]
    summary: str


@dataclass(frozen=True)
class Application:
    """A Serve application: ``module`` defines ``build``, ``service`` is from samclip.proto."""

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
                "The embeddings of an image, or of texts if the body has texts instead.",
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
                "What is this? The labels, most likely first.",
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
                "Where is it? The masks for points, a box or a text.",
            ),
            Route(
                "/everything",
                "SegmentEverything",
                pb.SegmentEverythingRequest,
                pb.SegmentEverythingResponse,
                "Masks of everything in the image, named if labels are given.",
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
                "Which pixel is what? One region per label, or a picture with Accept: image/png.",
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
                "Add images to a collection.",
            ),
            Route(
                "/search",
                "Search",
                pb.SearchRequest,
                pb.SearchResponse,
                "The images of a collection nearest to a text, an image or an id.",
            ),
            Route(
                "/delete",
                "Delete",
                pb.DeleteRequest,
                pb.DeleteResponse,
                "Delete images from a collection by id, or the whole collection with all.",
            ),
            Route(
                "/describe",
                "Describe",
                pb.DescribeRequest,
                pb.DescribeResponse,
                "The number of items in each collection, and the model of their embeddings.",
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
"""By name in Serve, which is also the value of the header ``application``."""

MODULES = {name: application.module for name, application in APPLICATIONS.items()} | {
    "gateway": "services.gateway.app"
}
"""The module of each application, including the gateway, which has pages and no rpcs."""
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
"""The ``grpc_servicer_functions`` of Serve's gRPC proxy."""

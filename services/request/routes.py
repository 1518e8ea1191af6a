"""The one table of routes: the applications, their gRPC services, and the POST route of each rpc.

The Serve applications and ``deploy/serve_config.yaml``, the servicers, the front door's map and the
OpenAPI document are made from it.
"""

from dataclasses import dataclass, replace

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from samclip.rpcs import RPCS


@dataclass(frozen=True)
class Route:
    """One rpc, by its name in ``samclip.rpcs``, at one path."""

    path: str
    rpc: str
    request: type[Message]
    response: type[Message]
    summary: str
    stream: str = ""
    """The rpc that answers this request in parts: one JSON object per line, over HTTP."""


class Application:
    """An application of Serve: ``module`` has its ``build``, ``services`` are in samclip.proto.

    ``rows`` are the path, rpc and summary of each route, and its rpc in parts if there is one; the
    proto has the types of the messages.
    """

    def __init__(self, module: str, services: tuple[str, ...], *rows: tuple[str, ...]):
        self.module, self.services = module, services
        self.routes = tuple(
            Route(
                path,
                rpc,
                GetMessageClass(RPCS[rpc].input_type),
                GetMessageClass(RPCS[rpc].output_type),
                summary,
                *parts,
            )
            for path, rpc, summary, *parts in rows
        )


APPLICATIONS = {
    "backbone": Application(
        "services.backbone.app",
        ("BackboneService",),
        (
            "/embed",
            "Embed",
            "The embeddings of an image, and of texts; of texts alone as /embed-text.",
        ),
        ("/embed-text", "EmbedText", "The embeddings of texts."),
    ),
    "classification": Application(
        "services.heads.classification.app",
        ("ClassificationService",),
        (
            "/classify",
            "Classify",
            "What is this, or what is in these areas? The labels, most likely first.",
        ),
    ),
    "segmentation": Application(
        "services.heads.segmentation.app",
        ("SegmentationService",),
        (
            "/segment",
            "Segment",
            "Where is it? The masks for points, a box or a text, if the checkpoint makes masks.",
        ),
        (
            "/everything",
            "SegmentEverything",
            "Masks of everything in the image, named if labels are given, if the checkpoint makes "
            "masks.",
            "StreamEverything",
        ),
    ),
    "semantic": Application(
        "services.heads.semantic.app",
        ("SemanticSegmentationService",),
        (
            "/semantic",
            "SegmentText",
            "Which pixel is what? One region per label, or a picture with Accept: image/png.",
        ),
        (
            "/explain",
            "Explain",
            "Where does the model see a label? A heat map, or a picture with Accept: image/png.",
        ),
    ),
    "retrieval": Application(
        "services.retrieval.app",
        ("RetrievalService", "ConceptService"),
        ("/index", "Index", "Add images to a collection."),
        (
            "/search",
            "Search",
            "The images of a collection nearest to a text, an image, a part of one, or an id.",
        ),
        (
            "/delete",
            "Delete",
            "Delete images from a collection by id, or the whole collection with all.",
        ),
        (
            "/describe",
            "Describe",
            "The number of items in each collection, and the model of their embeddings.",
        ),
        ("/items", "ListItems", "The ids and metadata of a collection, page by page."),
        (
            "/concepts",
            "PutConcept",
            "Name what some examples show: concept:NAME then stands for a label or a text.",
        ),
        ("/concepts/delete", "DeleteConcept", "Delete a concept."),
        ("/concepts/list", "ListConcepts", "The concepts, with their vectors if inline."),
    ),
}
"""By name in Serve, which is also the value of the header ``application``."""

HEAD = "head-"
"""Prefix of the application of each head of one's own, before the head's name."""
OWN_HEAD = Application(
    "services.heads.own.app",
    ("CustomHeadService",),
    ("/heads/", "Ask", "An answer of this head of one's own."),
)
"""The application of each head of one's own; the head's name follows in the path of its route."""

MODULES = {name: application.module for name, application in APPLICATIONS.items()} | {
    "gateway": "services.gateway.app"
}
"""The module of each application, including the gateway, which has pages and no rpcs."""
CUSTOM = "samclip.v1.CustomHeadService"
OTHER_NAMES = {("/embed", "texts"): "/embed-text"}
"""Path and field: a body with this field that is a request of the other path counts as one."""
ROUTES = {name: application.routes for name, application in APPLICATIONS.items()}
SERVICES = {
    f"samclip.v1.{service}": name
    for name, each in APPLICATIONS.items()
    for service in each.services
}
"""The application that answers each gRPC service."""
GATEWAY = {
    "grpc.health.v1.Health": ("Check", "Watch"),
    "grpc.reflection.v1alpha.ServerReflection": ("ServerReflectionInfo",),
    CUSTOM: ("Ask", "ListHeads"),  # of calls that do not name their head in a header
    "inference.GRPCInferenceService": (
        *("ServerLive", "ServerReady", "ServerMetadata"),
        *("ModelReady", "ModelMetadata", "ModelInfer"),
    ),
}
"""The rpcs of the gateway, by service."""
FRONT_DOOR = {
    **{route.path: name for name, routes in ROUTES.items() for route in routes},
    **{
        f"{method.containing_service.full_name}/{method.name}": SERVICES[
            method.containing_service.full_name
        ]
        for method in RPCS.values()
        if method.containing_service.full_name in SERVICES
    },
    **{f"{service}/{rpc}": "gateway" for service, rpcs in GATEWAY.items() for rpc in rpcs},
}
"""The application that answers each HTTP path, which begins with a slash, and each rpc.

Other paths of HTTP are pages, and other rpcs are refused.
"""
SERVICERS = [
    *(
        f"samclip.v1.samclip_pb2_grpc.add_{service}Servicer_to_server"
        for each in (*APPLICATIONS.values(), OWN_HEAD)
        for service in each.services
    ),
    "grpc_health.v1.health_pb2_grpc.add_HealthServicer_to_server",
    "services.gateway.adapters.open_inference.open_inference_pb2_grpc"
    ".add_GRPCInferenceServiceServicer_to_server",
]
"""The ``grpc_servicer_functions`` of Serve's gRPC proxy; the gateway has the last two."""


def of_application(name: str) -> Application:
    """Return an application of the table, or that of a head of one's own."""
    return OWN_HEAD if name.startswith(HEAD) else APPLICATIONS[name]


def module_of(name: str) -> str:
    """Return the module of an application, whose ``build`` makes it."""
    return OWN_HEAD.module if name.startswith(HEAD) else MODULES[name]


def routes_of(name: str) -> tuple[Route, ...]:
    """Return the routes of an application; the path of a head of one's own has its name."""
    routes = of_application(name).routes
    if not name.startswith(HEAD):
        return routes
    return tuple(replace(route, path=route.path + name.removeprefix(HEAD)) for route in routes)


def other_names(path: str) -> dict[str, Route]:
    """Return the routes of other paths whose requests this path takes, by the field they need."""
    routes = {route.path: route for routes in ROUTES.values() for route in routes}
    return {field: routes[other] for (at, field), other in OTHER_NAMES.items() if at == path}

"""The rpcs of all services, each under a name of its own."""

from google.protobuf.descriptor import MethodDescriptor

from samclip.v1 import samclip_pb2 as pb


def _name(method: MethodDescriptor) -> str:
    asked: str = method.input_type.name.removesuffix("Request")
    return asked if asked.startswith(method.name) else method.name


RPCS: dict[str, MethodDescriptor] = {
    _name(method): method
    for service in pb.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
"""A name is that of the proto, or the request's if that says more: two services have a ``Delete``,
of which one is ``DeleteConcept``."""

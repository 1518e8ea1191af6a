"""The page of the gRPC contract, from samclip.proto and its comments."""

from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from grpc_tools import protoc

from services.request.routes import ROUTES
from tests.checkout import ROOT

PROTO = "samclip/v1/samclip.proto"
# Numbers of these fields in FileDescriptorProto and DescriptorProto, as in the paths of comments.
MESSAGES, ENUMS, SERVICES, FIELDS, NESTED, NESTED_ENUMS = 4, 5, 6, 2, 3, 4

Place = tuple[int, ...]


def page() -> str:
    """Return every service, message and enum with its comments."""
    file = _compile()
    comments = {
        tuple(place.path): " ".join((place.leading_comments or place.trailing_comments).split())
        for place in file.source_code_info.location
    }
    sections = [
        f"# gRPC\n\nPackage `{file.package}`, from [`samclip.proto`](../proto/{PROTO})."
        " Server reflection and `grpc.health.v1.Health` answer on the same port."
    ]
    sections += [_service(file, i, comments) for i in range(len(file.service))]
    for i, message in enumerate(file.message_type):
        sections += _message(message, message.name, (MESSAGES, i), comments)
    sections += [_enum(one, one.name, (ENUMS, i), comments) for i, one in enumerate(file.enum_type)]
    return "\n\n".join(sections) + "\n"


def _compile() -> FileDescriptorProto:
    """Return the proto with its comments, which the stubs do not contain."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        well_known = files("grpc_tools") / "_proto"
        options = [f"-I{ROOT / 'proto'}", f"-I{well_known}", "--include_source_info"]
        assert protoc.main(["protoc", *options, f"--descriptor_set_out={out}", PROTO]) == 0
        return FileDescriptorSet.FromString(out.read_bytes()).file[0]


def _service(file: FileDescriptorProto, index: int, comments: dict[Place, str]) -> str:
    service = file.service[index]
    summaries = {route.rpc: route.summary for routes in ROUTES.values() for route in routes}
    rows = []
    for i, method in enumerate(service.method):
        asked = f"{'stream ' * method.client_streaming}{_named(method.input_type)}"
        answered = f"{'stream ' * method.server_streaming}{_named(method.output_type)}"
        comment = comments.get((SERVICES, index, 2, i)) or summaries.get(method.name, "")
        rows.append([f"`{method.name}`", asked, answered, comment])
    return _section(service.name, comments.get((SERVICES, index), ""), "rpc request reply", rows)


def _message(
    message: DescriptorProto, name: str, place: Place, comments: dict[Place, str]
) -> Iterator[str]:
    rows = [
        [
            f"`{field.name}`",
            _kind(field, message),
            str(field.number),
            comments.get((*place, FIELDS, i), ""),
        ]
        for i, field in enumerate(message.field)
    ]
    yield _section(name, comments.get(place, ""), "field type number", rows)
    for i, nested in enumerate(message.nested_type):
        if not nested.options.map_entry:
            yield from _message(nested, f"{name}.{nested.name}", (*place, NESTED, i), comments)
    for i, enum in enumerate(message.enum_type):
        yield _enum(enum, f"{name}.{enum.name}", (*place, NESTED_ENUMS, i), comments)


def _enum(enum: EnumDescriptorProto, name: str, place: Place, comments: dict[Place, str]) -> str:
    rows = [
        [f"`{value.name}`", str(value.number), comments.get((*place, 2, i), "")]
        for i, value in enumerate(enum.value)
    ]
    return _section(name, comments.get(place, ""), "value number", rows)


def _section(name: str, comment: str, header: str, rows: Iterable[Iterable[str]]) -> str:
    return f"## {name}\n\n{comment}\n\n{table([*header.split(), 'meaning'], rows)}"


def table(header: list[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    cells = ([cell.replace("|", "&#124;") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _kind(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    """Return the type of a field, with a link if it is a message or an enum."""
    nested = {one.name: one for one in message.nested_type if one.options.map_entry}
    entry = nested.get(field.type_name.rsplit(".", 1)[-1])
    if entry is not None:
        return f"map of {_kind(entry.field[0], entry)} to {_kind(entry.field[1], entry)}"
    scalar = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    kind = _named(field.type_name) if field.type_name else scalar
    repeated = field.label == FieldDescriptorProto.LABEL_REPEATED
    if field.HasField("oneof_index") and not field.proto3_optional:
        kind += f", one of `{message.oneof_decl[field.oneof_index].name}`"
    return f"{'repeated ' * repeated}{kind}"


def _named(type_name: str) -> str:
    name = type_name.removeprefix(".samclip.v1.")
    return f"[`{name}`](#{name.lower().replace('.', '')})"

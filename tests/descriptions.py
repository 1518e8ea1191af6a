"""The comments of samclip.proto, which describe the fields in the OpenAPI document.

``make proto`` runs this module: the stubs do not contain the comments.
"""

import json
import sys

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from tests.checkout import ROOT

FILE = ROOT / "services/gateway/descriptions.json"
# Numbers of these fields in FileDescriptorProto and, the last two, in DescriptorProto.
MESSAGES, FIELDS, NESTED = 4, 2, 3


def extract(compiled: bytes) -> dict[str, str]:
    """Return the comments in a FileDescriptorSet of protoc ``--include_source_info``."""
    (file,) = FileDescriptorSet.FromString(compiled).file
    comments = {}
    for place in file.source_code_info.location:
        match list(place.path):
            case [kind, message, *nested, inner, field] if (kind, inner) == (
                MESSAGES,
                FIELDS,
            ) and set(nested[::2]) <= {NESTED}:
                described = file.message_type[message]
                for index in nested[1::2]:
                    described = described.nested_type[index]
                comment = place.leading_comments or place.trailing_comments
                name = f"{described.name}.{described.field[field].name}"
                comments[name] = " ".join(comment.split())
    return comments


if __name__ == "__main__":
    FILE.write_text(json.dumps(extract(sys.stdin.buffer.read()), indent=1, ensure_ascii=False))

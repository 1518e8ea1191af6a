"""A stand-in for ``grpcurl -plaintext`` on machines without it.

Like grpcurl, it learns the schema of a service by reflection.
"""

import argparse
import sys

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("-plaintext", action="store_true", required=True)
    parser.add_argument("-d", choices=["@"], help="read the request as JSON from stdin")
    parser.add_argument("address")
    parser.add_argument("what", help="'list' or package.Service/Method")
    args = parser.parse_args()
    with grpc.insecure_channel(args.address) as channel:
        reflection = ProtoReflectionDescriptorDatabase(channel)
        if args.what == "list":
            print(*reflection.get_services(), sep="\n")
            return
        service, name = args.what.split("/")
        method = DescriptorPool(reflection).FindServiceByName(service).methods_by_name[name]
        request = json_format.Parse(sys.stdin.read(), GetMessageClass(method.input_type)())
        call = channel.unary_unary(
            f"/{args.what}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        print(json_format.MessageToJson(call(request, timeout=60)))


if __name__ == "__main__":
    main()

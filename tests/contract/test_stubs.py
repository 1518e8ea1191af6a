"""The committed stubs match the schema, and run with the oldest supported libraries."""

import re
import tomllib
from pathlib import Path

import grpc_tools
import pytest
from grpc_tools import protoc

from services.gateway import openapi
from tests import descriptions
from tests.checkout import ROOT

COMMITTED = ROOT / "client/samclip/v1"
GOOGLES = Path(grpc_tools.__file__).with_name("_proto")  # which the command adds by itself


def version(pattern: str, text: str) -> tuple[int, ...]:
    found = re.search(pattern, text)
    assert found, f"no {pattern!r} in the text"
    return tuple(int(part) for part in found[1].split("."))


def protobuf_version(folder: Path, name: str = "samclip") -> tuple[int, ...]:
    return version(r"Protobuf Python Version: ([\d.]+)", (folder / f"{name}_pb2.py").read_text())


def grpc_version(folder: Path, name: str = "samclip") -> tuple[int, ...]:
    text = (folder / f"{name}_pb2_grpc.py").read_text()
    return version(r"GRPC_GENERATED_VERSION = '([\d.]+)'", text)


@pytest.mark.parametrize(
    ("sources", "proto", "committed"),
    [
        ("proto", "samclip/v1/samclip.proto", "client"),
        (".", "services/gateway/adapters/open_inference/open_inference.proto", "."),
    ],
)
def test_stubs_are_current(tmp_path: Path, sources: str, proto: str, committed: str) -> None:
    arguments = ["protoc", f"-I{ROOT / sources}", f"-I{GOOGLES}"]
    arguments += [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    assert protoc.main([*arguments, str(ROOT / sources / proto)]) == 0
    name = Path(proto).stem
    made, kept = ((root / proto).parent for root in (tmp_path, ROOT / committed))
    for of in (protobuf_version, grpc_version):
        if of(made, name) != of(kept, name):
            pytest.skip(f"grpcio-tools generates {of(made, name)}, the stubs are {of(kept, name)}")
    for ending in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py"):
        file = name + ending
        assert (made / file).read_bytes() == (kept / file).read_bytes(), (
            f"{file} is out of date: run make proto"
        )


def test_the_descriptions_are_the_comments_of_the_proto_and_none_is_missing(
    tmp_path: Path,
) -> None:
    compiled = tmp_path / "set.pb"
    arguments = ["protoc", f"-I{ROOT / 'proto'}", f"-I{GOOGLES}", "--include_source_info"]
    schema = str(ROOT / "proto/samclip/v1/samclip.proto")
    assert protoc.main([*arguments, f"--descriptor_set_out={compiled}", schema]) == 0
    comments = descriptions.extract(compiled.read_bytes())
    assert comments == openapi.DESCRIPTIONS, "run make proto"
    assert all(comments.values()), [name for name, text in comments.items() if not text]


def test_stubs_run_with_the_oldest_libraries_that_are_allowed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = " ".join(project["dependencies"])
    assert version(r"protobuf>=([\d.]+)", needed) >= protobuf_version(COMMITTED)
    assert version(r"grpcio>=([\d.]+)", needed) >= grpc_version(COMMITTED)

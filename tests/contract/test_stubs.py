"""The committed stubs match the schema, and run with the oldest supported libraries."""

import re
import tomllib
from pathlib import Path

import pytest
from grpc_tools import protoc

from services.gateway import descriptions
from tests.checkout import ROOT

COMMITTED = ROOT / "client/samclip/v1"
STUBS = ("samclip_pb2.py", "samclip_pb2.pyi", "samclip_pb2_grpc.py")


def version(pattern: str, text: str) -> tuple[int, ...]:
    found = re.search(pattern, text)
    assert found, f"no {pattern!r} in the text"
    return tuple(int(part) for part in found[1].split("."))


def protobuf_version(folder: Path) -> tuple[int, ...]:
    return version(r"Protobuf Python Version: ([\d.]+)", (folder / "samclip_pb2.py").read_text())


def grpc_version(folder: Path) -> tuple[int, ...]:
    text = (folder / "samclip_pb2_grpc.py").read_text()
    return version(r"GRPC_GENERATED_VERSION = '([\d.]+)'", text)


def test_stubs_are_current(tmp_path: Path) -> None:
    arguments = ["protoc", f"-I{ROOT / 'proto'}"]
    arguments += [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    assert protoc.main([*arguments, str(ROOT / "proto/samclip/v1/samclip.proto")]) == 0
    made = tmp_path / "samclip/v1"
    for of in (protobuf_version, grpc_version):
        if of(made) != of(COMMITTED):
            pytest.skip(f"grpcio-tools generates {of(made)}, the stubs are {of(COMMITTED)}")
    for name in STUBS:
        assert (made / name).read_bytes() == (COMMITTED / name).read_bytes(), (
            f"{name} is out of date: run make proto"
        )


def test_the_descriptions_are_the_comments_of_the_proto_and_none_is_missing(
    tmp_path: Path,
) -> None:
    compiled = tmp_path / "set.pb"
    arguments = ["protoc", f"-I{ROOT / 'proto'}", "--include_source_info"]
    schema = str(ROOT / "proto/samclip/v1/samclip.proto")
    assert protoc.main([*arguments, f"--descriptor_set_out={compiled}", schema]) == 0
    comments = descriptions.extract(compiled.read_bytes())
    assert comments == descriptions.read(), "run make proto"
    assert all(comments.values()), [name for name, text in comments.items() if not text]


def test_stubs_run_with_the_oldest_libraries_that_are_allowed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = " ".join(project["dependencies"])
    assert version(r"protobuf>=([\d.]+)", needed) >= protobuf_version(COMMITTED)
    assert version(r"grpcio>=([\d.]+)", needed) >= grpc_version(COMMITTED)

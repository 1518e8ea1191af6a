"""Every option of every command that takes a path is given files that hang, fill memory or nest.

Each command ends by itself with one sentence. They run in forks of one process, which has imported
them all, with a limit of memory and of time.
"""

import argparse
import ast
import gzip
import io
import json
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from collections import defaultdict
from itertools import count, cycle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from samclip.cli import commands

from tests.checkout import ROOT
from tests.import_graph import MODULES

GIB = 2**30
PATHS = {
    "IMAGE", "FILE", "SOURCE", "CHECKPOINT", "FOLDER", "DIR", "SPEC", "MODELS", "URL",
    "MODEL:FILE", "DIR|FILE", "FILE|NAME", "FORM|NAME",
}  # fmt: skip
"""Metavars of what takes a path."""
UNNAMED_PATHS = {"image", "checkpoint", "data", "out", "start", "text_tower", "root", "detections"}
"""Names of what takes a path and has no metavar."""
ADDRESSES = {"redis_url", "label_studio_url"}
COMMANDS = {
    **dict.fromkeys(("classify", "semantic"), "{images} --labels cat dog"),
    "segment": "{images} --text cat",
    "explain": "{images} --label cat",
    **dict.fromkeys(("everything", "embed"), "{images}"),
    "ask": "things {images}",
    "batch": "{source} --out {out} --labels cat",
    "index": "things {images}",
    "search": "things --text cat",
    "search --image": "things",
    "search --root": "things --text cat --out new",
    "index --from": "things",
    "segment --like": "{images} --box 0 0 4 4",
    "ask --head": "things {images} --local",
    "delete": "things one",
    "describe": "things",
    "concept": "add cat {given} --box 0 0 4 4",
    "reindex": "old new --root {root}",
    "pull": "edge --out {out}",
    "convert": "--sam {sam} --clip {clip} --out {out}",
    "export": "{checkpoint}",
    "push": "{checkpoint} ann/edge",
    "info": "{checkpoint}",
    **dict.fromkeys(("backup", "restore"), "{file}"),
    "front-door": "--config {config}",
    "keys add": "ann --file {file}",
    "keys list": "--file {file}",
    "keys remove": "ann --file {file}",
    "cache warm": "{source}",
    "train": "--recipe {recipe} --data {data} --out {out}",
    "eval": "--suite voc --root {root} --checkpoint {checkpoint}",
    "calibrate": "{checkpoint} --data {data}",
    "probe fit": "{source} --out {out}",
    "probe eval": "{probe} {source}",
}
"""Arguments of the commands that need some; names in braces are replaced by a path."""
GIVEN = {
    "mask": ("mask.npy", "mask.png"),
    **dict.fromkeys(("ca", "cert", "tls_cert_file", "tls_client_ca_file"), ("cert.pem",)),
    "backbone_ca_file": ("cert.pem",),
    "api_keys_file": ("keys.map",),
    "config": ("settings.toml",),
    "file": ("keys.map",),
    "backup file": ("written",),
    "restore file": ("backup.gz",),
    "source": ("rows.jsonl", "list.txt", "shard.tar.gz", "t.parquet"),
    "probe fit source": ("labels.csv", "boxes.json"),
    "probe eval source": ("labels.csv", "boxes.json"),
    **dict.fromkeys(("heads", "head", "spec", "probe"), ("head", "code.py:Head")),
    "models": ("m=checkpoint",),
    **dict.fromkeys(("checkpoint", "local", "start", "text_tower"), ("checkpoint",)),
    "clip": ("local-dir:words", "ViT-B-32:weights.pth"),
    "sam": ("weights.pth", "weights.safetensors", "words"),
    "radio": ("words", "weights.pth"),
    "recipe": ("code.py:mine",),
    "calibrate": ("photos",),
    **dict.fromkeys(("data", "root"), ("data",)),
    "detections": ("boxes.json",),
    "features": ("checkpoint",),
}
"""The files that an option of a name is given; others get photo.jpg, as a folder to write to."""
FILES = [
    "photo.jpg", "mask.npy", "mask.png", "cert.pem", "keys.map", "settings.toml", "backup.gz",
    "labels.csv", "boxes.json", "rows.jsonl", "list.txt", "shard.tar.gz", "t.parquet",
    "head/head.json", "code.py", "checkpoint/manifest.json", "words/config.json",
    "words/model.safetensors", "weights.pth", "weights.safetensors", "photos/photo.jpg",
    "data/classes.json", "written", "data/ImageSets/Segmentation/val.txt",
]  # fmt: skip


def bomb(path: Path) -> None:
    """Write a file of up to 24 MB that takes much more once it is read."""
    packed = path.with_name("backup.gz")
    if path.suffix == ".gz" and packed.exists():
        os.link(packed, path)
    elif path.suffix == ".gz":
        with gzip.open(path, "wb", compresslevel=1) as file:
            for _ in range(250):
                file.write(bytes(2**22))
    elif path.suffix == ".pth":
        with (
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
            archive.open("archive/data.pkl", "w") as file,
        ):
            for _ in range(250):
                file.write(bytes(2**22))
    elif path.suffix in (".jpg", ".png"):
        file = io.BytesIO()
        Image.new("L", (1, 1)).save(file, "PNG")
        header = b"IHDR" + struct.pack(">IIBBBBB", 2**16, 2**16, 8, 0, 0, 0, 0)
        header += struct.pack(">I", zlib.crc32(header))
        path.write_bytes(file.getvalue()[:12] + header + file.getvalue()[33:])
    elif path.suffix == ".npy":
        about = {"descr": "<f8", "fortran_order": False, "shape": (2**36,)}
        header = f"{about!r:<117}\n".encode()
        path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    elif path.suffix == ".safetensors":
        path.write_bytes((3 * 2**22).to_bytes(8, "little") + b'{"a":' + b"[" * 3 * 2**22)
    elif path.suffix in (".toml", ".py"):
        path.write_bytes(b"a = " + b"[" * 2**20)
    else:
        path.write_bytes(b"[" + b"{},\n" * 2**22 if path.suffix == ".csv" else b"{}," * 2**22)


def make(folder: Path, kind: str) -> Path:
    """Fill a folder with files that all are of one kind."""
    for name in FILES:
        path = folder / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "sparse":
            path.touch()
            os.truncate(path, 3 * GIB)
        else:
            bomb(path)
    return folder / kind


SHARED = ("--ca", "--cert", "--local", "--out", "--config")
"""Options that many commands share: each gives them files of one kind."""
KINDS = ("pipe", "sparse", "bomb")


def write_probe(folder: Path) -> None:
    folder.mkdir()
    about = {"kind": "probe", "model": {"name": "edge", "digest": "0"}, "classes": ["a", "b"]}
    about |= {"outputs": ["CLIP_POOLED"], "threshold": 0.5}
    (folder / "head.json").write_text(json.dumps(about))
    tensors = {"weight": np.zeros((2, 4), np.float32), "bias": np.zeros(2, np.float32)}
    save_file(tensors, folder / "weights.safetensors")


def takes_path(action: argparse.Action) -> bool:
    unnamed = action.metavar is None and action.dest in UNNAMED_PATHS and not action.choices
    named = isinstance(action.metavar, str) and action.metavar in PATHS
    return (named or unnamed) and action.dest not in ADDRESSES


def walked(parser: argparse.ArgumentParser, name: str = "") -> list[tuple[str, argparse.Action]]:
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each, inner in action.choices.items():
                found += walked(inner, f"{name} {each}".strip())
        elif takes_path(action):
            found.append((name, action))
    return found


def placed(folder: Path, file: str) -> str:
    """Return an argument with a file in a folder, after a name and a colon or before a class."""
    for mark in ("=", "local-dir:", "ViT-B-32:"):
        if mark in file:
            before, _, after = file.partition(mark)
            return f"{before}{mark}{folder / after}"
    return str(folder / file)


def cases(root: Path) -> dict[str, list[str]]:
    """Return the arguments of each case by its name."""
    found, kinds = {}, defaultdict[str, "cycle[str]"](lambda: cycle(KINDS))
    for command, action in walked(commands.parser(whole=True)):
        option = action.option_strings[0] if action.option_strings else ""
        files = GIVEN.get(f"{command} {action.dest}", GIVEN.get(action.dest, ("photo.jpg",)))
        for file in files:
            kind = kinds[action.dest if option else command + action.dest]
            for each in (next(kind) for _ in KINDS[: 1 if option in SHARED else 3]):
                if each == "bomb" and file.startswith("code.py"):
                    continue  # code of one's own may do anything, and shows where it failed
                path = placed(root / each, file)
                whole = COMMANDS.get(f"{command} {option}", COMMANDS.get(command, "")).format_map(
                    Paths(root, {action.dest: path})
                )
                more = [option, path] if option and path not in whole else []
                name = f"{command} {option or action.dest} {each} {file}"
                found[name] = [*command.split(), *whole.split(), *more]
    return found


class Paths(dict[str, str]):
    """The paths of a command's other arguments: a picture, a bundled checkpoint, a new folder."""

    numbers = count()

    def __init__(self, root: Path, given: dict[str, str]) -> None:
        super().__init__(
            {"checkpoint": "edge", "recipe": "debug", "clip": "ViT-B-32:none.pth", **given}
        )
        self.root = root

    def __missing__(self, name: str) -> str:
        made = {"out": f"new-{next(self.numbers)}", "probe": "good"}
        return str(self.root / made.get(name, "good.png"))


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """Return the exit status of each case, and what it wrote to standard error."""
    root = tmp_path_factory.mktemp("strangers")
    for kind in KINDS:
        make(root, kind)
    Image.new("RGB", (8, 8)).save(root / "good.png")
    write_probe(root / "good")
    (root / "cases.json").write_text(json.dumps(cases(root)))
    command = [sys.executable, "-m", "tests.strangers", str(root / "cases.json")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(ran.stdout)


UNGUARDED = {
    "samclip.values.files": "the guarded reader",
    "samclip_core.io.official": "weights of any size, compared with the bytes of their file",
    **dict.fromkeys(("samclip_core.engine.processor", "services.launch.doctor"), "the kernel's"),
    **dict.fromkeys(("samclip_core.commands.measured", "samclip.cli.parquet"), "the kernel's"),
    "services.observability.metrics": "the kernel's",
    **dict.fromkeys(("samclip_core.answers.vocabularies", "samclip.cli.commands"), "of the code"),
    "services.gateway.openapi": "of the code",
    "services.gateway.browser_decoder": "npm's, compared with its digest before it is opened",
    "samclip_core.commands.conversion": "of the process that started it",
    **dict.fromkeys(("samclip.demo", "services.front_door.haproxy"), "of this process"),
    "training.evaluation.parallel": "of the processes that this one started",
    **dict.fromkeys(("services.front_door.inner_haproxy", "services.front_door.keys"), "likewise"),
}
"""Modules that read files in another way than by the guarded reader, with the reason."""
READERS = {"read_text", "read_bytes"}
LOADERS = {
    *("np.load", "np.fromfile", "np.memmap", "json.load", "torch.load", "pickle.load"),
    *("tomllib.load", "fsspec.open", "io.open", "Path.open"),
}
OPENED = ("file", "io.BytesIO")  # by the guarded reader, as far as these are checked here


def reads_unguarded(node: ast.AST) -> bool:
    """Return whether source opens a file by its name to read it."""
    if not isinstance(node, ast.Call):
        return False
    name, *given = map(ast.unparse, (node.func, *node.args))
    if name == "open":
        return not any(mode[1:2] in ("w", "x", "a") for mode in given[1:])
    opened = bool(given) and given[0].startswith(OPENED)
    return name.rpartition(".")[2] in READERS or (name in LOADERS and not opened)


def test_files_that_others_name_are_read_by_the_guarded_reader_alone() -> None:
    found = {
        module
        for module, path in MODULES.items()
        if any(map(reads_unguarded, ast.walk(ast.parse(path.read_text()))))
    }
    assert found == UNGUARDED.keys(), "use samclip_core.guarded or samclip.files"


@pytest.mark.slow
def test_every_command_ends_with_a_sentence(ended: dict[str, tuple[int, str]]) -> None:
    wrong = {
        name: (status, error[-600:])
        for name, (status, error) in ended.items()
        if status not in (0, 1, 2) or "Traceback" in error or not error.strip()
    }
    assert not wrong, json.dumps(wrong, indent=1)
    assert len(ended) > 200

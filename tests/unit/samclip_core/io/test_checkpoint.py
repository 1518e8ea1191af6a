"""Checkpoint directories with two small modules as network and text tower."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from samclip_core.config import EDGE
from samclip_core.errors import CheckpointError
from samclip_core.io import checkpoint
from samclip_core.io.manifest import digest_of
from samclip_core.nn.text_encoder import TextEncoder
from tests.tampered import edit, list_again
from tests.tiny import CALIBRATION

LINEAGE = {"data": ["none"]}


def _net() -> nn.ModuleDict:
    return nn.ModuleDict(
        {"image_encoder": nn.Linear(3, 4), "mask_decoder": nn.Sequential(nn.BatchNorm1d(4))}
    )


class _Text(TextEncoder):
    tokenizer_json = '{"tokens": 3}'

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 3)

    def tokenize(self, texts: list[str]) -> Tensor:
        return torch.zeros(len(texts), 1, dtype=torch.long)

    def forward(self, ids_TN: Tensor) -> Tensor:
        return self.words(ids_TN)[:, 0]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    checkpoint.save(tmp_path / "one", _net(), _Text(), EDGE, LINEAGE)
    return tmp_path / "one"


def test_weights_come_back_as_float32(tmp_path: Path) -> None:
    net, text = _net(), _Text()
    checkpoint.save(tmp_path / "exact", net, text, EDGE, LINEAGE, half=False)
    checkpoint.save(tmp_path / "half", net, text, EDGE, LINEAGE)
    exact, half = (checkpoint.load_weights(tmp_path / name, _net) for name in ("exact", "half"))
    weight = net["image_encoder"].weight
    assert torch.equal(exact["image_encoder"].weight, weight)
    assert half["image_encoder"].weight.dtype == torch.float32
    assert torch.equal(half["image_encoder"].weight, weight.half().float())
    assert torch.equal(half["image_encoder"].bias, net["image_encoder"].bias)


def test_only_the_named_parts_are_loaded(saved: Path) -> None:
    whole, head = _net(), nn.ModuleDict({"image_encoder": nn.Linear(3, 4)})
    before = whole["mask_decoder"][0].weight.clone().fill_(7.0)
    whole["mask_decoder"][0].weight.data.copy_(before)
    checkpoint.load_weights(saved, lambda: whole, parts=["image_encoder"])
    checkpoint.load_weights(saved, lambda: head, parts=["image_encoder"])
    assert torch.equal(whole["image_encoder"].weight, head["image_encoder"].weight)
    assert torch.equal(whole["mask_decoder"][0].weight, before)


def test_weights_that_are_no_tensors_are_named(saved: Path) -> None:
    (saved / checkpoint.WEIGHTS).write_bytes(b"no tensors")
    checkpoint.seal(saved)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a readable safetensors"):
        checkpoint.load_weights(saved, _net)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_weights_of_another_type_are_refused(saved: Path, dtype: torch.dtype) -> None:
    _store(saved, lambda value: value.to(dtype))
    with pytest.raises(CheckpointError, match=r"image_encoder.bias of model.safetensors .*again"):
        checkpoint.load_weights(saved, _net)


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf, 1e300])
def test_weights_that_are_not_finite_are_refused(saved: Path, number: float) -> None:
    _store(saved, lambda value: value.double() * number)
    with pytest.raises(CheckpointError, match=r"image_encoder.bias of model.safetensors .*again"):
        checkpoint.load_weights(saved, _net)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_precision_are_loaded(saved: Path, dtype: torch.dtype) -> None:
    _store(saved, lambda value: value.to(dtype))
    assert checkpoint.load_weights(saved, _net)["image_encoder"].bias.dtype == torch.float32


def _store(saved: Path, changed: Callable[[Tensor], Tensor]) -> None:
    """Change one tensor, and seal the checkpoint."""
    state = load_file(saved / checkpoint.WEIGHTS)
    state["image_encoder.bias"] = changed(state["image_encoder.bias"])
    save_file(state, saved / checkpoint.WEIGHTS)
    checkpoint.seal(saved)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.ModuleDict({"image_encoder": nn.Linear(3, 4)}), "unexpected .*mask_decoder.0.bias"),
        (nn.ModuleDict({**_net(), "extra": nn.Linear(1, 1)}), "missing .*extra.bias, extra.weight"),
        (
            nn.ModuleDict({**_net(), "image_encoder": nn.Linear(3, 5)}),
            r"another shape .*image_encoder.weight \[4, 3\] instead of \[5, 3\]",
        ),
    ],
)
def test_keys_and_shapes_are_strict(saved: Path, net: nn.Module, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load_weights(saved, lambda: net)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_changed_byte_is_refused_and_changes_the_digest(saved: Path, name: str) -> None:
    before, content = checkpoint.digest(saved), bytearray((saved / name).read_bytes())
    content[len(content) // 2] ^= 1
    (saved / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        checkpoint.read_file(saved, name)
    assert checkpoint.seal(saved) != before


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"files": {"a": "b"}, "digest": "c"}'])
def test_an_inconsistent_manifest_is_refused(saved: Path, content: str) -> None:
    (saved / checkpoint.MANIFEST).write_text(content)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        checkpoint.digest(saved)


@pytest.fixture
def listed(saved: Path) -> Path:
    """Return a checkpoint with two files that are listed as graphs."""
    for name in ("image_encoder.onnx", "text_encoder.onnx"):
        (saved / name).write_bytes(name.encode())
    checkpoint.seal_graphs(saved, 20, {"image_encoder.onnx": {}, "text_encoder.onnx": {}})
    return saved


def test_a_calibration_keeps_the_graphs_and_another_change_of_the_config_does_not(
    listed: Path,
) -> None:
    digest, graphs = checkpoint.digest(listed), checkpoint.graphs_digest(listed)
    assert checkpoint.calibrate(listed, CALIBRATION, {"data": "photos"}) != digest
    checkpoint.verify(listed)
    assert checkpoint.graphs_digest(listed) == graphs
    assert checkpoint.read_config(listed) == replace(EDGE, calibration=CALIBRATION)
    lineage = json.loads((listed / checkpoint.LINEAGE).read_text())
    assert lineage == LINEAGE | {"calibration": {"data": "photos"}}
    (listed / checkpoint.CONFIG).write_text(EDGE.to_json())
    checkpoint.seal(listed)
    assert checkpoint.graphs_digest(listed) == ""


def test_other_graphs_are_another_identity_of_the_same_digest(listed: Path) -> None:
    digest, before = checkpoint.digest(listed), checkpoint.identity(listed)
    assert before == digest + checkpoint.graphs_digest(listed)
    (listed / "image_encoder.onnx").write_bytes(b"another graph")
    with pytest.raises(CheckpointError, match=r"image_encoder\.onnx is missing or differs"):
        checkpoint.verify(listed)
    list_again(listed)
    checkpoint.verify(listed)
    assert checkpoint.digest(listed) == digest
    assert checkpoint.identity(listed) != before
    assert not checkpoint.agree(checkpoint.identity(listed), before)
    assert checkpoint.shown(before) == f"{before[:12]} with graphs {before[64:76]}"
    assert checkpoint.shown(checkpoint.identity(listed)) != checkpoint.shown(before)


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another digest": lambda graphs: graphs["files"]["text_encoder.onnx"].update(sha256="0" * 64),
    "one file less": lambda graphs: graphs["files"].pop("text_encoder.onnx"),
    "one file more": lambda graphs: graphs["files"].update({"more.onnx": {"sha256": "0" * 64}}),
    "no digest": lambda graphs: graphs.pop("digest"),
    "no files": lambda graphs: graphs.pop("files"),
    "files without digests": lambda graphs: graphs.update(files={"text_encoder.onnx": {}}),
    "a list": lambda graphs: graphs.update(files=[*graphs["files"]]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_list_of_graphs_is_covered_by_their_digest(
    listed: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    section = json.loads((listed / checkpoint.MANIFEST).read_text())["graphs"]
    change(section)
    edit(listed, section)
    for read in (checkpoint.verify, checkpoint.identity, checkpoint.graphs, checkpoint.file_names):
        with pytest.raises(CheckpointError, match=r"manifest\.json"):
            read(listed)


A, B, G, H = ("a" * 64, "b" * 64, "1" * 64, "2" * 64)


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        (A, A, True),
        (A, B, False),
        (A + G, A + G, True),
        (A + G, A + H, False),
        (A + G, B + G, False),
        (A + G, A, True),  # torch runs no graphs
        (A, A + H, True),
        ("", A, False),
        (A[:12], A, False),
    ],
)
def test_torch_works_with_any_graphs_and_graphs_with_the_same(
    one: str, other: str, together: bool
) -> None:
    assert checkpoint.agree(one, other) is checkpoint.agree(other, one) is together


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "lineage.json"])
def test_the_whole_is_verified_but_for_the_card(saved: Path, name: str) -> None:
    (saved / checkpoint.CARD).write_text("# not sealed yet")
    assert checkpoint.verify(saved) is None
    (saved / name).write_bytes((saved / name).read_bytes() + b" ")
    with pytest.raises(CheckpointError, match=f"{name} is missing or differs"):
        checkpoint.verify(saved)


def test_saving_replaces_a_checkpoint_and_leaves_nothing_behind(saved: Path) -> None:
    value = checkpoint.save(saved, _net(), _Text(), EDGE, {"data": ["other"]})
    assert checkpoint.digest(saved) == value
    assert [path.name for path in saved.parent.iterdir()] == ["one"]


def test_what_a_killed_save_has_left_is_removed_by_the_next(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (child := os.fork()):
        monkeypatch.setattr(
            checkpoint, "_write_tensors", lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        )
        checkpoint.save(saved, _net(), _Text(), EDGE, LINEAGE)
    os.waitpid(child, 0)
    assert len([*saved.parent.iterdir()]) == 2
    checkpoint.save(saved, _net(), _Text(), EDGE, LINEAGE)
    assert [path.name for path in saved.parent.iterdir()] == ["one"]


def test_saving_refuses_a_directory_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(CheckpointError, match="neither empty nor a checkpoint"):
        checkpoint.save(tmp_path, _net(), _Text(), EDGE, LINEAGE)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_a_failed_save_keeps_the_old_checkpoint(saved: Path) -> None:
    before, net = checkpoint.digest(saved), _net()
    net["image_encoder"].weight.data[0, 0] = 1e6  # overflows float16
    with pytest.raises(CheckpointError, match=r"image_encoder\.weight is not finite"):
        checkpoint.save(saved, net, _Text(), EDGE, LINEAGE)
    assert checkpoint.digest(saved) == before
    assert [path.name for path in saved.parent.iterdir()] == ["one"]


def test_resolve(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "BUNDLED", saved.parent)
    assert checkpoint.resolve("one") == saved.resolve()
    assert checkpoint.resolve(saved) == saved.resolve()
    with pytest.raises(CheckpointError, match=r"bundled \(one\).*samclip convert.*samclip train"):
        checkpoint.resolve("two")


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/passwd", "a/b", "..", ".hidden", "", "a\\b", "c:x", "\x1b[2J", "a\u202eb"],
)
def test_a_manifest_names_plain_files_alone(tmp_path: Path, name: str) -> None:
    for graphs in (False, True):
        files = {} if graphs else {name: "0" * 64}
        manifest = {"digest": digest_of(files), "files": files}
        if graphs:
            manifest["graphs"] = {"files": {name: {"sha256": "0" * 64}}}
        (tmp_path / checkpoint.MANIFEST).write_text(json.dumps(manifest))
        with pytest.raises(CheckpointError, match=r"manifest\.json is missing or differs"):
            checkpoint.file_names(tmp_path)


@pytest.mark.parametrize("graphs", [[], {"files": []}, {"files": {"a": 1}}, {"files": {"a": {}}}])
def test_a_manifest_of_another_form_is_damaged(tmp_path: Path, graphs: object) -> None:
    manifest = {"digest": digest_of({}), "files": {}, "graphs": graphs}
    (tmp_path / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.verify(tmp_path)

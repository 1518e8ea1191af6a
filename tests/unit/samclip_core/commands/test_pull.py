"""``samclip pull`` of a published model: its files by hand, from a server, and from a hub."""

import json
import re
import threading
from dataclasses import replace
from functools import partial
from http.client import BadStatusLine
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import ModelCard

from samclip_core.commands import export, measured, models, pull
from samclip_core.io import checkpoint, sources
from samclip_core.io.sources import Source
from samclip_core.model import SamClip
from tests.checkout import sources as sources_of_checkout
from tests.clip_models import TEXT_DIM, write_clip
from tests.official import small_sam, write

NOWHERE = "http://127.0.0.1:9/weights"
MEASURE = measured.measure


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Write a small SAM and a small CLIP as their publishers do."""
    root = tmp_path_factory.mktemp("published")
    write(small_sam(128, 32), root, "sam.pth")
    write_clip(root / "clip")
    return root


@pytest.fixture
def model(published, tmp_path, monkeypatch):
    """Offer these as the model "small"; its addresses answer nothing."""
    monkeypatch.setattr(sources, "FOLDER", tmp_path / "sources")
    monkeypatch.setattr(measured, "measure", lambda directory: f"{directory} was measured")
    monkeypatch.setenv("PYTHONPATH", sources_of_checkout())
    monkeypatch.chdir(tmp_path)
    names = ["open_clip_config.json", "open_clip_model.safetensors"]
    sam = Source(NOWHERE, "free", {"sam.pth": checkpoint.sha256(published / "sam.pth")})
    clip = Source(f"{NOWHERE}/clip", "MIT", dict.fromkeys(names, ""))
    small = models.Published("small", "tests", sam, clip, None, 1, 1, 0.1, *["none"] * 3)
    monkeypatch.setitem(models.MODELS, "small", small)
    return small


def place(published, model):
    """Copy the files into their places by hand."""
    for source, folder in (model.sam, published), (model.clip, published / "clip"):
        source.folder.mkdir(parents=True)
        for name in source.files:
            (source.folder / name).write_bytes((folder / name).read_bytes())


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        (
            "small",
            "needs huggingface_hub and torch, not installed: in a clone, run pip install -e "
            "'.[serve,export,hub]'",
        ),
        (
            "ann/edge",
            "needs huggingface_hub, not installed: in a clone, run pip install -e '.[hub]'",
        ),
    ],
)
def test_one_hint_names_all_that_is_missing(model, monkeypatch, capsys, name, hint):
    monkeypatch.setattr(pull, "find_spec", lambda name: None)
    assert pull.main([name]) == 1
    assert hint in capsys.readouterr().err


def listed(capsys):
    """Return the part of ``samclip models`` about "small"."""
    models.show()
    (part,) = [x for x in capsys.readouterr().out.split("\n\n") if x.startswith("small")]
    return part


def test_without_a_network_each_missing_file_is_named_with_its_place(model, capsys):
    assert pull.main(["small"]) == 1
    said = capsys.readouterr().err
    for source in model.sources:
        for name in source.files:
            assert f"{source.url(name)}\n    to {source.folder / name}\n" in said
            assert source.folder.is_dir()
    assert f"samclip pull: {NOWHERE}/sam.pth: [Errno" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["Small"], "neither a published model (mobile, "),
        (["small", "--revision", "v2"], "small has its own revisions: leave 'v2' out"),
    ],
)
def test_what_pull_cannot_mean_is_said_before_the_hub_is_asked(model, capsys, words, said):
    assert pull.main(words) == 1
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_files_placed_by_hand_become_a_checkpoint_with_licences(
    published, model, monkeypatch, tmp_path, capsys
):
    place(published, model)
    monkeypatch.setattr(measured, "measure", MEASURE)
    monkeypatch.setenv("HOME", str(tmp_path))  # of the caches
    assert "measured here" not in listed(capsys)
    assert pull.main(["small"]) == 0, capsys.readouterr().err
    out = tmp_path / "small"
    said = capsys.readouterr()
    assert f"digest {checkpoint.digest(out)}" in said.out
    cost = re.search(r"measured here: .* ms per new image at 128 pixels; .* MB of memory", said.err)
    assert cost, said.err
    assert f"\n  {cost[0]}\n" in listed(capsys)
    checkpoint.verify(out)
    assert not out.with_name(".small.pull").exists()
    lineage = json.loads(checkpoint.read_file(out, checkpoint.LINEAGE))
    assert [one["licence"] for one in lineage["published"]] == ["free", "MIT"]
    card = (out / checkpoint.CARD).read_text()
    about = ModelCard(card).data
    assert (about.license, about.license_name) == ("other", "free-and-mit")
    assert f"- free: {NOWHERE}\n- MIT: {NOWHERE}/clip\n" in card
    assert SamClip.load(out).embed_text(["a dog"]).shape == (1, TEXT_DIM)
    (out / checkpoint.CARD).write_text("another checkpoint, with other costs")
    checkpoint.seal(out)
    assert "measured here" not in listed(capsys)


@pytest.mark.slow
def test_what_measures_imports_nothing_from_the_current_directory(
    tiny_checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))  # of the caches
    monkeypatch.setenv("PYTHONPATH", sources_of_checkout())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "safetensors.py").write_text("raise SystemExit('a file of the user ran')")
    assert measured.measure(tiny_checkpoint).startswith("measured here: ")


def test_a_file_that_is_not_as_published_is_refused(published, model, capsys):
    place(published, model)
    path = model.sam.folder / "sam.pth"
    path.write_bytes(b"another file")
    assert pull.main(["small"]) == 1
    assert f"{path} is not as published" in capsys.readouterr().err


def test_an_answer_that_is_no_http_is_an_error_of_the_network(model, monkeypatch, capsys):
    def download(*_):
        raise BadStatusLine("<html>log in")

    monkeypatch.setattr("torch.hub.download_url_to_file", download)
    assert pull.main(["small"]) == 1
    assert f"{NOWHERE}/sam.pth: <html>log in" in capsys.readouterr().err


def test_files_are_downloaded_and_a_new_checkpoint_replaces_nothing(
    published, model, monkeypatch, tmp_path, capsys
):
    exported = []
    monkeypatch.setattr(export, "export", lambda directory, **_: exported.append(directory.name))
    handler = partial(SimpleHTTPRequestHandler, directory=published)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{server.server_port}"
        sam = Source(here, "free", model.sam.files)
        clip = Source(f"{here}/clip", "MIT", model.clip.files)
        small = models.Published("small", "tests", sam, clip, None, 1, 1, 0.1, *["none"] * 3)
        monkeypatch.setitem(models.MODELS, "small", small)
        assert pull.main(["small", "--out", "copy"]) == 0, capsys.readouterr().err
        server.shutdown()
    assert exported == [".copy.pull"]
    checkpoint.verify(tmp_path / "copy")
    assert pull.main(["small", "--out", "copy"]) == 1
    assert "copy exists: choose a new directory" in capsys.readouterr().err


def test_a_radio_is_made_of_three_publishers_files(radio_tiny, model, monkeypatch, tmp_path):
    """The text tower is the whole of a small CLIP."""
    parts = {"radio": "torchhub.pth.tar", "sam": "sam.pth"}
    found = {part: Source(f"{NOWHERE}/{part}", part, {file: ""}) for part, file in parts.items()}
    tower = radio_tiny / "text-siglip2-g"
    found["clip"] = Source(f"{NOWHERE}/tower", "clip", {path.name: "" for path in tower.iterdir()})
    for part, source in found.items():
        source.folder.mkdir(parents=True)
        for name in source.files:
            folder = tower if part == "clip" else radio_tiny
            (source.folder / name).write_bytes((folder / name).read_bytes())
    tiny = replace(model, **found)
    monkeypatch.setitem(models.MODELS, "small", tiny)
    pull._convert(tiny, tmp_path / "radio")
    lineage = json.loads(checkpoint.read_file(tmp_path / "radio", checkpoint.LINEAGE))
    assert [one["licence"] for one in lineage["published"]] == ["radio", "sam", "clip"]
    assert checkpoint.read_config(tmp_path / "radio").kind == "radio"


def test_the_table_names_each_model_once_and_pins_what_is_not_on_the_hub():
    for name, model in models.MODELS.items():
        assert name == model.name
        for source in model.sources:
            assert source.licence
            if not source.address.startswith("hf://"):
                assert all(len(digest) == 64 for digest in source.files.values()), source


def test_models_are_listed_for_people_and_programs(capsys):
    models.show()
    assert "samclip pull NAME" in capsys.readouterr().out
    models.show(as_json=True)
    listed = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert listed.keys() == models.MODELS.keys()
    assert listed["mobile"]["revision not pinned"] == []
    assert listed["radio-b"]["revision not pinned"] == ["hf://timm/ViT-gopt-16-SigLIP2-384"]

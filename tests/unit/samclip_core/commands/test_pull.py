"""``samclip pull`` of a published model: its files by hand, from a server, and from a hub."""

import json
import os
import re
import signal
from contextlib import suppress
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler
from importlib.metadata import distributions
from io import StringIO
from pathlib import Path
from socketserver import StreamRequestHandler
from threading import Event, Thread

import pytest
from huggingface_hub import ModelCard

from samclip_core.commands import conversion, environment, export, measured, models, pull
from samclip_core.errors import CheckpointError
from samclip_core.families.published import Source
from samclip_core.io import checkpoint, hub, sources
from samclip_core.model import SamClip
from tests.checkout import sources as sources_of_checkout
from tests.clip_models import TEXT_DIM, write_clip
from tests.http_server import Handler, serving
from tests.installers import write_uv
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
    monkeypatch.setattr("samclip_core.families.published.FOLDER", tmp_path / "sources")
    monkeypatch.setattr(checkpoint, "PULLED", tmp_path / "pulled")
    monkeypatch.setattr(environment, "FOLDER", tmp_path / "environment")
    monkeypatch.setattr(measured, "measure", lambda directory: f"{directory} was measured")
    monkeypatch.setenv("PYTHONPATH", sources_of_checkout())
    monkeypatch.chdir(tmp_path)
    names = ["open_clip_config.json", "open_clip_model.safetensors"]
    sam = Source(NOWHERE, "free", {"sam.pth": checkpoint.sha256(published / "sam.pth")}, 41)
    clip = Source(f"{NOWHERE}/clip", "MIT", dict.fromkeys(names, ""), 41)
    small = models.Published("small", "tests", sam, clip, None, 1, 1, *["none"] * 3)
    monkeypatch.setitem(models.MODELS, "small", small)
    return small


def place(published, model):
    """Copy the files into their places by hand."""
    for source, folder in (model.sam, published), (model.clip, published / "clip"):
        source.folder.mkdir(parents=True)
        for name in source.files:
            (source.folder / name).write_bytes((folder / name).read_bytes())


@pytest.fixture
def without_torch(model, tiny_checkpoint, monkeypatch, tmp_path):
    """Have an installation without PyTorch, and a uv whose Pythons copy a checkpoint; return it."""

    def others():
        return [one for one in distributions() if one.name != "torch"]

    monkeypatch.setattr(environment, "find_spec", lambda name: None)
    monkeypatch.setattr(environment, "distributions", others)
    uv = write_uv(tmp_path, f'cat > /dev/null; cp -r {tiny_checkpoint} "$4"')
    monkeypatch.setattr(environment, "_uv", lambda: str(uv))
    return uv


def test_without_torch_a_temporary_environment_converts_once(
    published, model, without_torch, tmp_path, tiny_checkpoint, capfd
):
    place(published, model)
    for _ in range(2):
        assert pull.main(["small", "--yes"]) == 0, capfd.readouterr().err
        assert capfd.readouterr().out == (
            f"{tmp_path / 'pulled/small'}\ndigest "
            f"{checkpoint.shown(checkpoint.identity(tiny_checkpoint), 64)}\n"
        )
    made, installed = without_torch.with_name("asked").read_text().splitlines()
    assert made.startswith("venv ")
    assert "--torch-backend cpu torch>=" in installed
    assert not (tmp_path / "environment").exists()
    assert [path.name for path in (tmp_path / "pulled").iterdir()] == ["small"]
    assert checkpoint.resolve("small") == tmp_path / "pulled/small"


def test_nobody_waits_for_another_pull_before_the_question(
    model, without_torch, monkeypatch, capfd
):
    def locked(*_):
        raise AssertionError("waited")

    monkeypatch.setattr(pull, "locked", locked)
    monkeypatch.setattr("sys.stdin", StringIO())
    assert pull.main(["small"]) == 1
    assert "pass --yes" in capfd.readouterr().err


@pytest.mark.parametrize("answer", [None, "no"])
def test_nothing_is_downloaded_or_installed_before_somebody_agrees(
    model, without_torch, monkeypatch, capfd, answer
):
    stdin = StringIO(answer or "")
    stdin.isatty = lambda: answer is not None
    monkeypatch.setattr("sys.stdin", stdin)
    assert pull.main(["small"]) == 1
    said = capfd.readouterr().err
    assert f"{environment.GIGABYTES} GB" in said
    assert "the answer is not 'yes'" in said if answer else "pass --yes" in said
    assert not without_torch.with_name("asked").exists()
    assert not model.sam.folder.exists()


def test_an_installation_that_fails_leaves_the_downloads_alone(
    published, model, without_torch, tmp_path, capfd
):
    place(published, model)
    write_uv(tmp_path, "", status=1)
    assert pull.main(["small", "--yes"]) == 1
    assert "PyTorch could not be installed" in capfd.readouterr().err
    assert not (tmp_path / "environment").exists()
    assert not [*(tmp_path / "pulled").iterdir()]
    assert not [name for one in model.sources for name in one.missing]


def test_nothing_is_installed_on_a_disk_that_is_too_full(
    published, model, without_torch, monkeypatch, capfd
):
    place(published, model)
    monkeypatch.setattr(environment, "GIGABYTES", 1e9)
    assert pull.main(["small", "--yes"]) == 1
    assert "PyTorch needs 1000000000.0 GB in " in capfd.readouterr().err
    assert not without_torch.with_name("asked").exists()


def test_what_was_made_for_a_conversion_is_removed_when_it_is_ended(
    published, model, without_torch, monkeypatch, tmp_path
):
    def end(python, model, out):
        out.mkdir()
        os.kill(os.getpid(), signal.SIGTERM)

    place(published, model)
    monkeypatch.setattr(conversion, "convert_with", end)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        pull.main(["small", "--yes"])
    assert signal.getsignal(signal.SIGTERM) is before
    assert not (tmp_path / "environment").exists()
    assert not [*(tmp_path / "pulled").iterdir()]


def test_a_machine_without_installers_says_what_is_missing(
    model, without_torch, monkeypatch, capsys
):
    monkeypatch.setattr(environment, "_uv", lambda: None)
    assert pull.main(["small", "--yes"]) == 1
    assert "neither uv nor pip is here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "first"), [("", "uv"), ("global.index-url='https://mirror.example'", "pip")]
)
def test_pip_installs_where_its_settings_say_from_where(
    without_torch, monkeypatch, tmp_path, settings, first
):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho {settings!r}\n")
    python.chmod(0o755)
    monkeypatch.setattr(environment.sys, "executable", str(python))
    monkeypatch.setattr(environment, "find_spec", lambda name: name == "pip" or None)
    ways = environment._ways(tmp_path / "environment", ["torch"])
    names = ["uv" if install[1] == "pip" else install[2] for _, install in ways]
    assert names == (["uv", "pip"] if first == "uv" else ["pip", "uv"])
    (pip,) = [install for _, install in ways if install[2] == "pip"]
    assert (environment.TORCH_INDEX in pip) == (first == "uv")


def listed(capsys):
    """Return the part of ``samclip models`` about "small"."""
    models.show()
    (part,) = [x for x in capsys.readouterr().out.split("\n\n") if x.startswith("small")]
    return part


def test_without_a_network_each_missing_file_is_named_with_its_place(model, capsys):
    assert pull.main(["small"]) == 1
    said = capsys.readouterr().err
    for source in model.sources:
        for name, digest in source.files.items():
            size = "small" if name.endswith(".json") else "about 41 MB"
            about = f"{size}, SHA-256 {digest or 'as its page states it'}"
            assert f"{source.url(name)}\n    {about}\n    to {source.folder / name}\n" in said
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
    out = tmp_path / "pulled/small"
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


class NoHttp(StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"<html>log in\r\n\r\n")


def at(address, model, monkeypatch):
    """Have a model's files at this address."""
    sam, clip = replace(model.sam, address=address), replace(model.clip, address=f"{address}/clip")
    monkeypatch.setitem(models.MODELS, "small", replace(model, sam=sam, clip=clip))
    return sam


def test_an_answer_that_is_no_http_is_an_error_of_the_network(model, monkeypatch, capsys):
    with serving(NoHttp) as address:
        at(address, model, monkeypatch)
        assert pull.main(["small"]) == 1
    assert f"samclip pull: {address}/sam.pth: " in capsys.readouterr().err


def test_files_are_downloaded_and_a_new_checkpoint_replaces_nothing(
    published, model, monkeypatch, tmp_path, capsys
):
    exported = []
    monkeypatch.setattr(export, "export", lambda directory, **_: exported.append(directory.name))
    with serving(partial(SimpleHTTPRequestHandler, directory=published)) as address:
        at(address, model, monkeypatch)
        assert pull.main(["small", "--out", "copy"]) == 0, capsys.readouterr().err
    assert exported == [".copy.pull"]
    checkpoint.verify(tmp_path / "copy")
    assert pull.main(["small", "--out", "copy"]) == 1
    assert "copy exists: choose a new directory" in capsys.readouterr().err


def test_more_bytes_than_a_checkpoint_may_have_are_refused_and_removed(
    published, model, monkeypatch, capsys
):
    whole = (published / "sam.pth").read_bytes()
    monkeypatch.setattr(hub, "MAX_BYTES", len(whole) - 1)

    class Endless(Handler):
        def do_GET(self):
            self.answer(whole)

    with serving(Endless) as address:
        sam = at(address, model, monkeypatch)
        for begun in (b"", whole[:1000]):
            folder = sam.folder / ".partial"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "sam.pth").write_bytes(begun)
            assert pull.main(["small"]) == 1
            said = f"{address}/sam.pth sends more than the limit of {len(whole) - 1:,} bytes"
            assert said in capsys.readouterr().err
            assert not (folder / "sam.pth").exists()


def test_two_pulls_of_a_repository_at_once_make_one_checkpoint(
    tiny_checkpoint, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    ended, others = Event(), list[Thread]()
    monkeypatch.setattr(pull, "say", lambda _: ended.set())  # the other one waits

    def other():
        with suppress(CheckpointError):
            pull.pull("me/small", Path("small"))
        ended.set()

    def download(repository, names, most=0, *, local_dir, **_):
        (local_dir / hub.PLACE).mkdir(parents=True, exist_ok=True)
        for name in names:
            (local_dir / name).write_bytes((tiny_checkpoint / Path(name).name).read_bytes())
        if not others:
            others.append(Thread(target=other))
            others[0].start()
            assert ended.wait(60)
        return local_dir

    monkeypatch.setattr(hub, "download", download)
    assert pull.pull("me/small", Path("small")) == Path("small")
    others[0].join()
    checkpoint.verify(Path("small"))
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_an_interrupted_download_resumes_and_another_file_is_removed(published, model, monkeypatch):
    whole, asked = (published / "sam.pth").read_bytes(), []

    class Ranges(Handler):
        def do_GET(self):
            asked.append(self.headers["range"])
            start = int((asked[-1] or "bytes=0-")[6:-1])
            if start == len(whole):
                self.answer(b"", 416)
                return
            rest = whole[start:]
            about = f"bytes {start}-{len(whole) - 1}/{len(whole)}"
            self.answer(rest, 206 if start else 200, Content_Range=about)

    with serving(Ranges) as address:
        sam = at(address, model, monkeypatch)
        for begun in (whole[:1000], bytes(len(whole)), b"another file"):
            folder = sam.folder / ".partial"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "sam.pth").write_bytes(begun)
            if begun != b"another file":
                sources.obtain(sam)
                (sam.folder / "sam.pth").unlink()
            else:
                with pytest.raises(CheckpointError, match="is not as published"):
                    sources.obtain(sam)
            assert not (folder / "sam.pth").exists()
    assert asked == ["bytes=1000-", f"bytes={len(whole)}-", None, "bytes=12-"]


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
    conversion._convert(tiny, tmp_path / "radio")
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
    assert "samclip serve --checkpoint NAME" in capsys.readouterr().out
    models.show(as_json=True)
    listed = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert listed.keys() == models.MODELS.keys()
    assert listed["mobile"]["revision not pinned"] == []
    assert listed["radio-b"]["revision not pinned"] == ["hf://timm/ViT-gopt-16-SigLIP2-384"]

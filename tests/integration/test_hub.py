"""``samclip push`` and ``pull`` against a stand-in for the Hugging Face hub."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from samclip_core.errors import CheckpointError
from samclip_core.io import checkpoint
from tests.checkout import sources
from tests.clip_models import write_clip
from tests.converted import efficientvit_sam
from tests.hub_server import Hub, running
from tests.in_process import png
from tests.installers import write_uv
from tests.official import small_sam, write
from tests.tiny import make_tiny_checkpoint

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running() as hub:
        yield hub


@pytest.fixture
def python(hub: Hub, tmp_path: Path) -> Run:
    """Return a function that runs Python with this hub, in a folder of its own."""
    (tmp_path / "here").mkdir()
    own = {"HF_ENDPOINT": hub.address, "HF_HOME": f"{tmp_path}/home", "HF_TOKEN": "hf_token"}
    own |= {"HOME": f"{tmp_path}/user", "HF_HUB_DISABLE_XET": "1"}  # large files through Git LFS
    environment = os.environ | own | {"PYTHONPATH": sources(), "NO_PROXY": "127.0.0.1"}

    def run(*words: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *map(str, words)]
        return subprocess.run(
            command, cwd=tmp_path / "here", env=environment | more, capture_output=True, text=True
        )

    return run


@pytest.fixture
def samclip(python: Run) -> Run:
    """Return a function that runs a command with this hub."""
    return partial(python, "-m", "samclip.cli")


def _manifest(*names: str) -> bytes:
    files = dict.fromkeys(names, "0" * 64)
    lines = "".join(f"{name} {value}\n" for name, value in sorted(files.items()))
    digest = hashlib.sha256(lines.encode()).hexdigest()
    return json.dumps({"digest": digest, "files": files}).encode()


def _pushed(directory: Path) -> set[str]:
    """Return the names of what a push of this checkpoint writes."""
    page = {"README.md", "config.json"}
    return page | {f"samclip/{name}" for name in checkpoint.file_names(directory)}


def test_a_checkpoint_is_pushed_and_pulled(hub: Hub, samclip: Run, tmp_path: Path):
    directory = make_tiny_checkpoint(tmp_path / "small")
    (directory / ".graph.partial").write_text("not a file of the checkpoint")
    (directory / "notes [1]*.txt").write_text("a file whose name is no pattern")
    checkpoint.seal(directory)
    (directory / "notes 1.txt").write_text("a secret")
    digest = checkpoint.digest(directory)
    hub.files = {".gitattributes": b"", "paper.pdf": b"", "an.onnx": b""}
    hub.files["samclip/old [1].onnx"] = b""
    hub.files[f"samclip/{checkpoint.MANIFEST}"] = _manifest("old [1].onnx", "gone.onnx")
    pushed = samclip("push", directory, "me/small")
    assert (pushed.returncode, pushed.stdout) == (
        *(0, f"{hub.address}/me/small\ndigest {digest}\n"),
    ), pushed.stderr
    kept = {".gitattributes", "paper.pdf", "an.onnx"}
    assert hub.files.keys() == kept | _pushed(directory)
    assert hub.files["samclip/config.json"] == (directory / "config.json").read_bytes()
    assert hub.messages == [f"samclip push: digest {digest}"]
    assert set(hub.objects.values()) == {p.read_bytes() for p in directory.glob("*.safetensors")}

    hub.files["samclip/notes 1.txt"] = b"another file"
    pulled = samclip("pull", "me/small")
    assert (pulled.returncode, pulled.stdout) == (0, f"small\ndigest {digest}\n"), pulled.stderr
    copy = tmp_path / "here/small"
    assert {path.name for path in copy.iterdir()} == {*checkpoint.file_names(directory)}
    checkpoint.verify(copy)

    again = samclip("pull", "me/small")
    assert again.returncode == 1
    assert "small exists: choose a new directory with --out, or serve what is there" in again.stderr


def test_a_damaged_file_is_neither_pushed_nor_pulled(hub: Hub, samclip: Run, tmp_path: Path):
    directory = make_tiny_checkpoint(tmp_path / "small")
    good = (directory / checkpoint.WEIGHTS).read_bytes()
    (directory / checkpoint.WEIGHTS).write_bytes(good[:-1] + b"x")
    assert "differs from its digest" in samclip("push", directory, "me/small").stderr
    assert hub.files is None
    hub.files = {f"samclip/{path.name}": path.read_bytes() for path in directory.iterdir()}
    pulled = samclip("pull", "me/small", "--out", tmp_path / "copy")
    assert (pulled.returncode, pulled.stdout) == (1, "")
    assert f"{checkpoint.WEIGHTS} is missing or differs from its digest" in pulled.stderr
    assert not (tmp_path / "copy").exists()


def test_a_checkpoint_is_named_by_its_repository(hub: Hub, samclip: Run, tmp_path: Path):
    """It is downloaded once; then this machine's snapshot answers, even without the hub."""
    directory = make_tiny_checkpoint(tmp_path / "small")
    hub.files = {f"samclip/{path.name}": path.read_bytes() for path in directory.iterdir()}
    hub.files["paper.pdf"] = b"not of the checkpoint"
    digest = checkpoint.digest(directory)
    first = samclip("info", "hf://me/small", "--json")
    assert json.loads(first.stdout)["digest"] == digest, first.stderr
    assert not [*(tmp_path / "home").rglob("paper.pdf")]
    hub.files = None  # it is gone
    again = samclip("info", "hf://me/small", "--json")
    assert json.loads(again.stdout)["digest"] == digest, again.stderr
    photo = tmp_path / "here/photo.png"
    photo.write_bytes(png())
    local = samclip("classify", photo, "--labels", "a cat", "--local", "hf://me/small")
    assert "a cat" in local.stdout, local.stderr


def test_a_card_that_a_person_wrote_stays(hub: Hub, samclip: Run, tmp_path: Path):
    """Whether before the first push or after one."""
    directory = make_tiny_checkpoint(tmp_path / "small")
    card = directory / checkpoint.CARD

    def pushed(files: dict[str, bytes]) -> bytes:
        hub.files = {".gitattributes": b"", **files}
        run = samclip("push", directory, "me/small")
        assert run.returncode == 0, run.stderr
        return hub.files[checkpoint.CARD]

    first = pushed({})
    later = dict(hub.files or {})
    assert first.startswith(b"---\n")
    assert b'SamClip.load("hf://me/small")' in first
    card.write_text("# Random weights, better described\n")
    checkpoint.seal(directory)
    assert b"better described" in pushed(later)
    for files in ({}, later):
        assert pushed(files | {checkpoint.CARD: b"# Mine\n"}) == b"# Mine\n"


def test_a_push_replaces_no_file_of_another_model(hub: Hub, samclip: Run, tmp_path: Path):
    directory = make_tiny_checkpoint(tmp_path / "small")
    theirs = {".gitattributes": b"", "config.json": b'{"model_type": "bert"}'}
    hub.files = {**theirs}
    run = samclip("push", directory, "me/small")
    assert (run.returncode, hub.files) == (1, theirs)
    assert (
        "samclip push: me/small has a config.json of another model, which this push would replace: "
        "choose another repository\n"
    ) in run.stderr


@pytest.mark.parametrize("before", ["me/other", "me/small"])
def test_what_an_interrupted_pull_has_left_is_no_part_of_the_next(
    hub: Hub, samclip: Run, tmp_path: Path, before: str
):
    """Of another repository, or of an earlier commit of this one."""
    first, second = make_tiny_checkpoint(tmp_path / "a"), make_tiny_checkpoint(tmp_path / "b")
    (first / "notes.txt").write_text("a file of the first checkpoint")
    checkpoint.seal(first)
    hub.files = {f"samclip/{path.name}": path.read_bytes() for path in first.iterdir()}
    hub.files[f"samclip/{checkpoint.WEIGHTS}"] += b"x"
    interrupted = samclip("pull", before, "--out", "small")
    assert "differs from its digest" in interrupted.stderr
    assert [*(tmp_path / "here").glob(".small*.pull/samclip/notes.txt")]
    hub.files = {f"samclip/{path.name}": path.read_bytes() for path in second.iterdir()}
    hub.commit = "0" * 39 + "2"
    pulled = samclip("pull", "me/small")
    assert pulled.returncode == 0, pulled.stderr
    copy = tmp_path / "here/small"
    assert {path.name for path in copy.iterdir()} == {*checkpoint.file_names(second)}
    assert checkpoint.digest(copy) == checkpoint.digest(second)


@pytest.fixture
def convert(hub: Hub, samclip: Run, tmp_path: Path) -> Run:
    """Put a small CLIP on the hub; return a function that converts it beside a small SAM."""
    sam, clip = write(small_sam(128, 32), tmp_path, "sam.pth"), write_clip(tmp_path / "clip")
    hub.files = {path.name: path.read_bytes() for path in clip.iterdir()}
    hub.files |= {"README.md": b"", "pytorch_model.bin": b"the same weights again"}

    def run(out: str, page: str = "hf://me/small", **more: str):
        return samclip("convert", "--sam", sam, "--clip", page, "--out", out, **more)

    return run


@pytest.mark.slow
def test_a_page_of_the_hub_is_converted(hub: Hub, convert: Run, tmp_path: Path):
    """Its files are downloaded once; those that are not as the hub states are not kept."""
    hub.about = {"ETag": f'"{"0" * 64}"'}
    assert "is not as published" in convert("damaged").stderr
    hub.about = {}
    first = convert("pair")
    assert first.returncode == 0, first.stderr
    copies = tmp_path / f"user/.cache/samclip/sources/me/{hub.commit}/small"
    assert {path.name for path in copies.iterdir() if path.is_file()} == {
        *("open_clip_config.json", "open_clip_model.safetensors")
    }
    hub.commit = "0" * 39 + "2"  # a later commit has another name
    again = convert("again", HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    (copies / "open_clip_model.safetensors").write_bytes(b"another file")
    assert "open_clip_model.safetensors is not as published" in convert("edited").stderr


def test_a_conversion_says_and_keeps_commit_and_licence(hub: Hub, convert: Run, tmp_path: Path):
    hub.card = {"license": "mit"}
    made = convert("pair", "hf://me/small@v2")
    pinned = f"hf://me/small@{hub.commit}"
    assert f"{pinned}: licence mit\n" in made.stderr
    out = tmp_path / "here/pair"
    lineage = json.loads(checkpoint.read_file(out, checkpoint.LINEAGE))
    assert lineage["published"] == [{"address": pinned, "licence": "mit"}]
    card = checkpoint.read_file(out, checkpoint.CARD).decode()
    about = ModelCard(card).data  # its SAM is a file of any licence
    assert (about.license, about.license_name) == ("other", "mit-and-other")
    assert about.base_model == ["me/small"]


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ({"license": "other", "license_name": "nvidia-open"}, "nvidia-open"),
        ({"license": ["mit", 1]}, "mit, 1"),
        ({"tags": ["clip"]}, "not stated"),
    ],
)
def test_the_licence_is_that_of_the_page(hub: Hub, python: Run, card: object, licence: str):
    hub.card, hub.files = card, {"model.safetensors": b"weights"}
    code = "from samclip_core.io import sources; print(sources.page('hf://me/small').licence)"
    found = python("-c", code)
    assert found.stdout == f"{licence}\n", found.stderr


PAGE = """
from samclip_core.errors import CheckpointError
from samclip_core.io import sources

try:
    found = sources.page("hf://me/small", {})
    print(found.address, *found.files)
except CheckpointError as error:
    print(error)
"""


@pytest.mark.parametrize(
    "reply",
    [
        {"id": "me/small", "sha": "../../../../elsewhere", "siblings": []},
        {"id": "me/small", "sha": "1" * 40, "siblings": [{"rfilename": 7}]},
        [],
    ],
)
def test_a_reply_of_another_form_is_refused(
    hub: Hub, python: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reply: object
):
    hub.files = {"model.safetensors": b"weights"}
    monkeypatch.setattr(hub, "get", lambda path: reply)
    found = python("-c", PAGE.format(False))
    assert "the reply is not of the hub's form" in found.stdout, found.stderr
    assert not [path for path in tmp_path.rglob("*") if path.name in (*hub.files, ".small.json")]


@pytest.mark.parametrize("damaged", [b"", b"[]"])
def test_a_damaged_record_is_written_again(hub: Hub, python: Run, tmp_path: Path, damaged: bytes):
    hub.files = {"model.safetensors": b"weights"}
    record = tmp_path / "user/.cache/samclip/sources/me/main/.small.json"
    record.parent.mkdir(parents=True)
    record.write_bytes(damaged)
    found = python("-c", PAGE.format(False))
    pinned = f"hf://me/small@{hub.commit}"
    assert found.stdout == f"{pinned} model.safetensors\n", found.stderr
    assert json.loads(record.read_bytes())["address"] == pinned


def test_a_page_is_read_again_until_it_has_weights(hub: Hub, python: Run):
    """An archive is preferred only for RADIO; others may keep their training's state in one."""
    hub.files = {"config.json": b"{}"}
    assert "has none of" in python("-c", PAGE.format(False)).stdout
    hub.files |= {"model.safetensors": b"weights", "last.pth.tar": b"an archive"}
    hub.commit = "0" * 39 + "2"
    for archive, weights in ((False, "model.safetensors"), (True, "last.pth.tar")):
        found = python("-c", PAGE.format(archive))
        assert found.stdout == f"hf://me/small@{hub.commit} config.json {weights}\n", found.stderr


OBTAIN = """
from samclip_core.families.published import Source
from samclip_core.io.sources import obtain
found = obtain(Source("hf://me/small", "MIT", {"weights": ""}))
print(found.address, found.licence, found.files, found.folder)
"""


def test_a_source_of_the_table_is_pinned_by_its_first_download(
    hub: Hub, python: Run, tmp_path: Path
):
    """Files that are placed by hand are used as they are."""
    hub.files, hub.card = {"weights": b"1"}, {"license": "other"}
    sources = tmp_path / "user/.cache/samclip/sources/me"
    digest = {"weights": hashlib.sha256(b"1").hexdigest()}
    pinned = f"hf://me/small@{hub.commit} MIT {digest} {sources}/{hub.commit}/small\n"
    first = python("-c", OBTAIN)
    assert first.stdout == pinned, first.stderr
    hub.files, hub.commit = {"weights": b"2"}, "0" * 39 + "2"
    assert python("-c", OBTAIN).stdout == pinned
    copy = next(sources.glob("*/small/weights"))
    by_hand = sources / "main/small/weights"
    by_hand.parent.mkdir(parents=True)
    copy.rename(by_hand)
    again = python("-c", OBTAIN, HF_HUB_OFFLINE="1")
    assert again.stdout == f"hf://me/small MIT {digest} {by_hand.parent}\n", again.stderr
    by_hand.write_bytes(b"a newer file")
    newer = python("-c", OBTAIN, HF_HUB_OFFLINE="1")
    assert hashlib.sha256(b"a newer file").hexdigest() in newer.stdout, newer.stderr
    by_hand.write_bytes(b"1")
    by_hand.rename(copy)
    assert python("-c", OBTAIN).stdout == pinned


GATED = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model me/a is restricted."}
BAD_TOKEN = {"X-Error-Message": "Invalid credentials in Authorization header"}
REFUSALS: dict[str, tuple[dict[str, object], str]] = {
    "/me/a/resolve/": ({"status": 401, **GATED}, "its licence must be accepted first"),
    "/me/b/resolve/": ({"status": 403, **GATED}, "its licence must be accepted first"),
    "/me/c/resolve/": ({"status": 403}, "you may not read it"),
    "/models/me/d": (
        *(
            {"status": 401, "X-Error-Message": "Invalid username or password."},
            "you may not read it",
        ),
    ),
    "/models/me/e": ({"status": 404, "X-Error-Code": "RepoNotFound"}, "you may not read it"),
    "/models/me/f": ({"status": 404, "X-Error-Code": "RevisionNotFound"}, "no such revision"),
    "/models/me/g": ({"status": 401, **BAD_TOKEN}, "you may not read it"),
    "/models/me/h": ({"status": 403}, "you may not read it"),
}
"""The hub's own headers, and what a user reads."""

READ = """
from samclip_core.errors import CheckpointError
from samclip_core.io import checkpoint, sources

for name in "abcdefgh":
    for read in (sources.page, checkpoint.resolve):
        try:
            read(f"hf://me/{name}")
        except CheckpointError as error:
            print(error)
"""


def test_a_page_that_may_not_be_read_says_how_to_read_it(hub: Hub, python: Run):
    """As the weights of a publisher, and as a checkpoint."""
    hub.files = {"model.safetensors": b"weights", f"samclip/{checkpoint.MANIFEST}": b"{}"}
    hub.refusals = {part: answer for part, (answer, _) in REFUSALS.items()}
    said = python("-c", READ).stdout.splitlines()
    remedies = [remedy for _, remedy in REFUSALS.values() for _ in range(2)]
    for remedy, line in zip(remedies, said, strict=True):
        assert remedy in line


@pytest.mark.parametrize("name", ["hf://me", "hf://me/small/more", "hf://me/sm all", "hf://"])
def test_what_is_no_repository_is_refused(name: str):
    with pytest.raises(CheckpointError, match="is not hf://OWNER/NAME"):
        checkpoint.resolve(name)


def test_a_repository_without_a_checkpoint_is_an_error(hub: Hub, samclip: Run):
    hub.files = {"model.safetensors": b"a BERT"}
    for name in ("hf://me/small", "hf://me/small@v2"):
        found = samclip("info", name)
        assert found.returncode == 1
        assert "manifest.json" in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize("words", [("pull", "me/small"), ("info", "hf://me/small")])
def test_a_manifest_of_many_bytes_is_not_read(
    hub: Hub, samclip: Run, tmp_path: Path, words: tuple[str, ...]
):
    hub.files = {f"samclip/{checkpoint.MANIFEST}": b" " * (2**20 + 1) + b"{}"}
    found = samclip(*words)
    assert found.returncode == 1
    assert "me/small sends more than the limit of 1,048,576 bytes" in found.stderr
    assert "Traceback" not in found.stderr


def test_a_size_that_is_stated_is_compared_before_anything_is_fetched(hub: Hub, samclip: Run):
    hub.files = {f"samclip/{checkpoint.MANIFEST}": b"{}"}
    # By Xet, whose errors of progress bars end no download.
    hub.about = {"X-Xet-Hash": "0" * 64, "X-Xet-Refresh-Route": f"{hub.address}/xet"}
    hub.about["X-Linked-Size"] = str(2**20 + 1)
    pulled = samclip("pull", "me/small")
    assert pulled.returncode == 1
    assert "me/small sends more than the limit of 1,048,576 bytes" in pulled.stderr


def test_bytes_are_counted_as_they_arrive(hub: Hub, samclip: Run, tmp_path: Path):
    hub.files = {"a": b"1" * 600, "b": b"2" * 600}
    environment = os.environ | {"HF_ENDPOINT": hub.address, "PYTHONPATH": sources()}
    code = "from samclip_core.io import hub; print(hub.download('me/small', {}, {}))"
    for hidden, most in (("0", 1200), ("0", 599), ("1", 599)):
        hub.about = {} if most == 1200 else {"X-Linked-Size": "1"}  # a server may state less
        environment |= {
            "HF_HUB_DISABLE_PROGRESS_BARS": hidden,
            "HF_HOME": f"{tmp_path}/{hidden}{most}",
        }
        command = [sys.executable, "-c", code.format(["a", "b"], most)]
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert (run.returncode == 0) == (most == 1200), run.stderr
        assert most == 1200 or "more than the limit of 599 bytes" in run.stderr


WITHOUT_TORCH = """
import sys
from samclip_core.commands import environment, pull
environment.lacking = lambda: ["torch"]
environment._uv, environment.find_spec = lambda: sys.argv[1], lambda name: None  # no pip
sys.exit(pull.main(["efficientvit-sam-l0+pe-core-s", "--yes"]))
"""


@pytest.mark.slow
def test_a_published_model_is_made_by_another_python_and_found_by_its_name(
    hub: Hub, python: Run, samclip: Run, efficientvit_sam_tiny: Path, tmp_path: Path
):
    """The small CLIP stands for PE-Core."""
    files = write_clip(tmp_path / "clip").iterdir()
    sam = efficientvit_sam("l0", efficientvit_sam_tiny.parent, tmp_path)
    hub.files = {path.name: path.read_bytes() for path in (*files, sam)}
    made = python("-c", WITHOUT_TORCH, write_uv(tmp_path))
    assert made.returncode == 0, made.stderr
    assert "samclip calibrate efficientvit-sam-l0+pe-core-s --data SET" in made.stderr
    assert "measured here: " in made.stderr
    assert not (tmp_path / "user/.cache/samclip/converting").exists()
    about = samclip("info", "efficientvit-sam-l0+pe-core-s")
    assert "Apache-2.0 (EfficientViT-SAM, MIT Han Lab)" in about.stdout
    assert samclip("pull", "efficientvit-sam-l0+pe-core-s").stdout == made.stdout

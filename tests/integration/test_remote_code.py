"""Repositories of ``samclip push``, read by transformers and by sentence-transformers."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samclip_core.commands.convert import convert
from samclip_core.commands.push import _page
from samclip_core.io import checkpoint
from samclip_core.model import SamClip
from tests.checkout import sources
from tests.clip_models import add_small_clip
from tests.hub_server import Hub, running
from tests.official import clip, small_sam, write
from tests.photographs import draw

TEXTS = ["a dog", "the grass", "a photo of a cat"]
SIZES = ((90, 160), (160, 90), (128, 128))
FIND = """
import json, sys
import numpy as np
from PIL import Image

where, texts, photos = json.loads(sys.argv[1])
images = [Image.open(path) for path in photos]
"""
AUTO_MODEL = f"""{FIND}
from transformers import AutoModel

model = AutoModel.from_pretrained(where, trust_remote_code=True)
assert model.device.type == "cpu"
assert (model.get_text_features(texts[0]) == model.get_text_features(texts[:1])).all()
assert (model.get_image_features(photos[0]) == model.get_image_features(photos[:1])).all()
for none in (model.get_text_features([]), model.get_image_features([])):
    assert none.shape == (0, model.get_embedding_dimension())
np.savez(sys.argv[2], texts=model.get_text_features(texts), images=model.get_image_features(images),
         paths=model.get_image_features(photos), digest=model.samclip.digest)
"""
SENTENCE_TRANSFORMER = f"""{FIND}
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(where, trust_remote_code=True)
np.savez(sys.argv[2], texts=model.encode(texts), images=model.encode(images),
         paths=model.encode(photos), digest=model[0].samclip.digest)
assert model.get_embedding_dimension() == len(model.encode("a dog"))
assert np.allclose(model.encode("dog", prompt="a "), model.encode("a dog"), atol=1e-6)
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running() as hub:
        yield hub


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pair")
    name = add_small_clip(root)
    sam = write(small_sam(128, 32), root, "sam.pth")
    convert(sam, f"{name}:{write(clip(name), root, 'clip.bin')}", root / "pair")
    return root / "pair"


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(hub: Hub, tmp_path: Path) -> Run:
    """Return a function that runs Python with this hub and an empty home."""
    own = {"HF_ENDPOINT": hub.address, "HF_HOME": f"{tmp_path}/home", "HF_TOKEN": "hf_token"}
    own |= {"NO_PROXY": "127.0.0.1", "PYTHONPATH": sources(), "HF_HUB_DISABLE_XET": "1"}

    def run(*words: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *map(str, words)]
        return subprocess.run(
            command, env=os.environ | own | more, cwd=tmp_path, capture_output=True, text=True
        )

    return run


@pytest.mark.parametrize("code", [AUTO_MODEL, SENTENCE_TRANSFORMER], ids=["auto", "sentence"])
@pytest.mark.parametrize(("kind", "local"), [("edge", False), ("pair", True)])
def test_vectors_are_the_librarys(
    hub: Hub, run: Run, pair: Path, tmp_path: Path, kind: str, local: bool, code: str
):
    if code == SENTENCE_TRANSFORMER:
        pytest.importorskip("sentence_transformers")
    directory = pair if kind == "pair" else checkpoint.resolve("edge")
    pushed = run("-m", "samclip.cli", "push", directory, "me/small")
    assert pushed.returncode == 0, pushed.stderr
    assert hub.files is not None
    photos = [f"{tmp_path}/{seed}.png" for seed in range(len(SIZES))]
    for seed, size in enumerate(SIZES):
        Image.fromarray(draw(seed, *size).image_HW3).save(photos[seed])
    if local:
        for name, content in hub.files.items():
            path = tmp_path / "copy" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        assert checkpoint.resolve(tmp_path / "copy") == tmp_path / "copy/samclip"
        hub.files = None
    where = f"{tmp_path}/copy" if local else "me/small"
    done = run("-c", code, json.dumps((where, TEXTS, photos)), tmp_path / "found.npz")
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npz")
    model = SamClip.load(directory, dtype="float32")
    assert str(found["digest"]) == model.digest
    images = [model.embed_image(draw(seed, *size).image_HW3) for seed, size in enumerate(SIZES)]
    for name, expected in {
        "texts": model.embed_text(TEXTS), "images": images, "paths": images
    }.items():  # fmt: skip
        cosines = np.sum(found[name] * np.stack(expected), axis=1)
        assert cosines.shape == (3,)
        assert cosines.min() > 0.99999, (name, cosines)


def test_without_the_package_the_error_says_how_to_install_it(run: Run, tmp_path: Path):
    (tmp_path / "copy").mkdir()
    for name, content in _page(checkpoint.resolve("edge"), "me/small").items():
        data = content if isinstance(content, bytes) else content.read_bytes()
        (tmp_path / "copy" / name).write_bytes(data)
    code = "import sys; sys.modules['samclip_core'] = None; "  # as if it were not installed
    code += "from transformers import AutoModel; "
    code += "AutoModel.from_pretrained('copy', trust_remote_code=True)"
    done = run("-c", code)
    assert done.returncode == 1
    assert "needs the package samclip: in a clone of it, run pip install" in done.stderr

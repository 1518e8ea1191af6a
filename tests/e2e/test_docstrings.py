"""The examples in the client's docstrings, run against the service."""

import asyncio
import doctest
import inspect
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import samclip
from PIL import Image
from skimage import data

from tests.e2e.conftest import Service

pytestmark = pytest.mark.e2e
PARSER = doctest.DocTestParser()


def _docstrings() -> Iterator[tuple[str, str]]:
    """Yield (name, docstring) of all that the client makes public, if it has an example."""
    yield "samclip", str(samclip.__doc__)
    for name in samclip.__all__:
        found = getattr(samclip, name)
        members = vars(found).items() if inspect.isclass(found) else ()
        for member, value in [("", found), *members]:
            if not member.startswith("_") and ">>>" in (value.__doc__ or ""):
                yield f"{name}.{member}".rstrip("."), inspect.getdoc(value) or ""


DOCSTRINGS = {text: name for name, text in _docstrings() if ">>>" in text}
"""Each text once: the asynchronous and the blocking method share it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photo: bytes) -> Path:
    """Return the folder in which the examples run, with the photographs that they name."""
    folder = tmp_path_factory.mktemp("docstrings")
    (folder / "photographs").mkdir()
    for name in ("cat.jpg", "photographs/cat.jpg"):
        (folder / name).write_bytes(photo)
    Image.fromarray(data.coffee()).save(folder / "photographs/coffee.jpg")
    (folder / "photographs/torn.jpg").write_bytes(photo[:1000])
    return folder


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize(("name", "text"), [(name, text) for text, name in DOCSTRINGS.items()])
def test_an_example(
    name: str, text: str, service: Service, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with samclip.Client(service.address, timeout=300) as client:
        photo = client.image("cat.jpg")
        known = {"samclip": samclip, "client": client, "photo": photo, "np": np, "asyncio": asyncio}
        text = text.replace("127.0.0.1:9000", service.address)
        example = PARSER.get_doctest(text, known, name, None, None)
        options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        report: list[str] = []
        failed = doctest.DocTestRunner(optionflags=options).run(example, out=report.append).failed
    assert not failed, "".join(report)


@pytest.mark.parametrize("name", ["Client", "Photo", "Photos", "Mask", "Masks"])
def test_what_a_user_meets_first_has_examples(name: str) -> None:
    assert any(found.split(".")[0].removeprefix("Async") == name for found in DOCSTRINGS.values())

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.image import engine
from tests.image.stack import Stack

IMAGE = "samclip:test"


@pytest.fixture(scope="session")
def docker() -> Iterator[None]:
    """Run with a Docker engine; skip the tests, with a line that nobody overlooks, without one."""
    try:
        with engine.running():
            if not engine.available(engine.BASE):
                engine.make_base()
            engine.check_containers()
            yield
    except engine.NoEngineError as error:
        pytest.skip(f"NO IMAGE IS BUILT OR TESTED: {error}")


@pytest.fixture(scope="session")
def image(docker: None) -> str:
    """Build the image of the service; return its tag."""
    engine.build(IMAGE, "VERSION=0.0.test", "REVISION=f00d")
    return IMAGE


@pytest.fixture(scope="module")
def stack(image: str) -> Iterator[Stack]:
    """Start what docker-compose.yml describes, with keys, and remove it with its volumes."""
    for name, tag in engine.STAND_INS.items():
        if not engine.available(tag):
            engine.make_stand_in(name, tag)
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack(image, Path(folder))
        try:
            yield stack
        finally:
            stack.compose("down", "--volumes", "--timeout", "60")

"""The examples of "Several models" run as written, in order, against a service that has two."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import documents
from tests.checkout import ROOT
from tests.e2e.conftest import Service, start
from tests.e2e.test_readme import environment, folder, run_as_written

__all__ = ["environment", "folder"]
pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, folder: Path, tiny_checkpoint: Path, photo: bytes
) -> Iterator[Service]:
    """Run a service whose large model has random weights."""
    (folder / "out").mkdir()
    (folder / "out/cat.jpg").write_bytes(photo)
    models = f"edge,mobile={tiny_checkpoint}"
    running = start(tmp_path_factory.mktemp("several"), "edge", MODELS=models)
    yield running
    running.stop()


def test_the_examples_run(service: Service, folder: Path, environment: dict[str, str]) -> None:
    run_as_written(
        documents.runnable(ROOT / "docs/several-models.md"), service, folder, environment
    )

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from samclip_core.deferred import defer

PACKAGE = "heavy_package_of_a_test"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    folder = tmp_path / PACKAGE
    folder.mkdir()
    (folder / "__init__.py").write_text("from .layer import Layer\nheavy = 1\n")
    (folder / "layer.py").write_text("class Layer: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield PACKAGE
    for name in [name for name in sys.modules if name.startswith(PACKAGE)]:
        del sys.modules[name]


def test_a_module_comes_alone_and_the_rest_when_it_is_asked_for(package: str) -> None:
    defer(package)
    layer = importlib.import_module(f"{package}.layer")
    whole = importlib.import_module(package)
    assert whole.layer is layer
    assert "heavy" not in vars(whole)
    assert whole.heavy == 1
    assert whole.Layer is layer.Layer
    with pytest.raises(AttributeError):
        whole.nothing  # noqa: B018


def test_what_is_there_already_stays_and_what_is_nowhere_is_left_to_who_imports_it(
    package: str,
) -> None:
    whole = importlib.import_module(package)
    defer(package)
    assert sys.modules[package] is whole
    defer("no_package_of_this_name")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_package_of_this_name")


def test_segment_anything_is_whole_for_who_imports_it_after_us() -> None:
    code = (
        "from samclip_core.mask_decoder import MaskDecoder; import sys; "
        "print('torchvision' in sys.modules); "
        "from segment_anything import SamPredictor, modeling, sam_model_registry; "
        "print('vit_b' in sam_model_registry, issubclass(MaskDecoder, modeling.MaskDecoder))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "True"]

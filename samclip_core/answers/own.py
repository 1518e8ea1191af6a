"""Find and open heads of one's own: a class in a file or a module, or a folder of weights."""

import importlib
import os
import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from samclip_core import guarded
from samclip_core.answers import head as heads
from samclip_core.answers.head import Head
from samclip_core.answers.probe import Probe
from samclip_core.errors import HeadError

FORMS = "FILE.py:CLASS, MODULE:CLASS or the FOLDER of a probe"


def name_of(spec: str) -> str:
    """Return the name of a head in requests: its class in kebab case, or its folder's name.

    "fruit.py:RipeFruit" is "ripe-fruit". Imports nothing. Raises HeadError.
    """
    place, _, kind = spec.rpartition(":")
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", kind).lower() if place else Path(spec).name
    if name.endswith(".py"):
        raise HeadError(f"the head {spec!r} is a file: name its class too, as in {spec}:CLASS")
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,47}", name):
        raise HeadError(
            f"the head {spec!r} has no usable name: expected {FORMS}, whose name is up to 48 "
            "letters, digits, dashes and underscores (in a folder's name no capital letters)"
        )
    return name


def absolute(spec: str) -> str:
    """Return a specification that does not depend on the current directory, of the same name."""
    place, colon, kind = spec.rpartition(":")
    path = place or kind
    is_path = not place or place.endswith(".py")
    if not is_path:
        return spec
    whole = os.path.abspath(Path(path).expanduser())  # a link keeps its name
    return f"{whole}{colon}{kind if place else ''}"


def open_head(spec: str) -> Head:
    """Return the head of a specification, not loaded yet. A folder runs no code.

    Raises HeadError if there is none, and whatever the code of a class raises.
    """
    place, _, kind = spec.rpartition(":")
    if not place:
        return Probe(Path(spec).expanduser())
    try:
        found = getattr(_module(place), kind, None)
        if not (isinstance(found, type) and issubclass(found, Head)):
            raise HeadError(
                f"{place} has no class {kind} that is a samclip_core.Head: expected {FORMS}"
            )
        made = found()
    except SystemExit as error:
        raise HeadError(
            f"{place} ends its process when it is imported: put what it does as a script below "
            'if __name__ == "__main__":'
        ) from error
    heads.check(made)
    return made


def _module(place: str) -> ModuleType:
    """Import a module, or a file, which finds its neighbours as if it were run as a script."""
    if not place.endswith(".py"):
        return importlib.import_module(place)
    path = Path(place)
    try:
        guarded.read(path)
    except (OSError, ValueError) as error:
        raise HeadError(f"{path} cannot be read ({error}): expected {FORMS}") from error
    other = getattr(sys.modules.get(path.stem), "__file__", str(path))
    name = path.stem if other == str(path) else f"{path.stem} of {path.parent}"
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    sys.modules[name] = module  # where its annotations are looked up, and pickle finds its classes
    spec.loader.exec_module(module)
    return module

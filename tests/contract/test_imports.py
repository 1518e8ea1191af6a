"""Packages import only allowed packages, in the source and at run time."""

import subprocess
import sys
from graphlib import TopologicalSorter

import pytest

from tests.checkout import sources
from tests.import_graph import MODULES, imported

CLIENT_MAY = {"samclip", "grpc", "google", "numpy", "PIL", *sys.stdlib_module_names}
ON_DEMAND = {"rich", "supervision"}
"""Packages that the client imports only when they are needed."""
COMMAND_LINE = {"fsspec", "grpc_health", "pyarrow", "rich_argparse", "shtab"}
"""Packages that only the command line imports."""
MAY_NOT = {
    "samclip_core": {"ray", "grpc", "redis", "pydantic", "services", "training"},
    "services": {"training", "tests"},
    "training": {"services", "redis", "tests"},
}
VALUES = "samclip.values"
"""All that lies below the library: it needs NumPy and Pillow alone."""


LAYERS = {
    "samclip_core": (
        "errors geometry",
        "calibration guarded regions",
        "families",
        "typed_json",
        "config licence types",
        "io",
        "nn",
        "families.modules",
        "engine",
        "answers",
        "encoder",
        "model",
        "commands",
    ),
    "services": (
        "model_names",
        "settings private_files observability sources stop",
        "batching",
        "cache",
        "request",
        "deployment front_door",
        "backbone heads gateway",
        "local retrieval",
        "lake launch probe",
    ),
    "training": (
        "schedule workers",
        "journal",
        "loop recipes",
        "options",
        "data",
        "results",
        "evaluation",
        "fitting",
        "suites",
        "distillation",
        "evaluate",
        "merges",
        "train",
        "claims",
    ),
}
"""Parts of each package from the bottom to the top; a part imports only parts in lower rows."""


IMPORTS = {name: imported(path) for name, path in MODULES.items()}


def part(module: str) -> str:
    """Return the part of its package that a module belongs to: "io" for samclip_core.io.image.

    A family's modules, which its description loads by their names, lie above what they build on.
    """
    names = f"{module}.".split(".")
    return "families.modules" if names[1] == "families" and names[3:-1] else names[1]


@pytest.mark.parametrize("folder", LAYERS)
def test_imports_point_down(folder: str) -> None:
    level = {name: number for number, row in enumerate(LAYERS[folder]) for name in row.split()}
    level[""] = len(LAYERS[folder])  # the package itself may import every part
    own = [name for name in MODULES if name.split(".")[0] == folder]
    assert {part(name) for name in own} == set(level)
    for module in own:
        for name in IMPORTS[module]:
            mine, theirs = part(module), part(name)
            if name.split(".")[0] == folder and mine != theirs:
                assert level[theirs] < level[mine], f"{module} imports {name}"


def test_there_is_no_circle() -> None:
    TopologicalSorter({name: IMPORTS[name] & MODULES.keys() - {name} for name in MODULES}).prepare()


def packages(module: str) -> set[str]:
    return {name.split(".")[0] for name in IMPORTS[module]}


def test_a_module_imports_only_packages_that_its_folder_may() -> None:
    for module, path in MODULES.items():
        folder, names = module.split(".")[0], packages(module)
        assert path.stem not in {"utils", "util", "misc", "helpers", "common"}, module
        assert not names & MAY_NOT.get(folder, set()), module
        if folder in ("samclip_core", "training") or module.startswith(VALUES):
            client = {name for name in IMPORTS[module] if name.split(".")[0] == "samclip"}
            assert all(name.startswith(f"{VALUES}.") for name in client), module
        if module.startswith(VALUES):
            assert names <= CLIENT_MAY - {"grpc", "google"}, module
        if folder == "samclip":
            may = CLIENT_MAY | ON_DEMAND
            may |= COMMAND_LINE if module.startswith("samclip.cli") else set()
            may |= {"fiftyone"} if module == "samclip.fiftyone" else set()  # for its users alone
            assert names <= may, module


@pytest.mark.parametrize(
    ("code", "without"),
    [
        ("import samclip, samclip.cli", {"torch", "ray", "cv2", "pycocotools", "samclip_core"}),
        ("import samclip; samclip.Client", ON_DEMAND),
        ("import samclip", {"grpc", "samclip.client"}),
        ("import samclip_core", {"torch", "ray", "grpc", "samclip.client"}),
        (
            "from samclip_core import Geometry, Prompt, SamClipConfig, errors, geometry, types; "
            "from samclip_core.io import checkpoint, image, masks; "
            "from samclip_core.answers import zero_shot",
            {"torch", "ray", "grpc", "samclip.client"},
        ),
        # The launcher imports these to build the applications; only replicas load the libraries.
        (
            "import services.backbone.app, services.retrieval.app, services.heads.segmentation.app"
            ", services.heads.semantic.app, services.heads.classification.app",
            {"torch", "openvino", "onnxruntime"},
        ),
        # They need no more than the extras that ``samclip.cli.commands`` names for them.
        (
            "from samclip_core.commands import info, models, pull, push",
            {"torch", "open_clip", "timm"},
        ),
        # ``samclip --local`` imports it.
        ("import services.local", {"ray", "fastapi", "redis", "torch"}),
        (
            "from samclip_core import SamClip; SamClip.load().embed_text(['a dog'])",
            {"torch", "torchvision", "timm", "open_clip", "segment_anything"},
        ),
        # What the readers of a training wait for.
        ("import training.distillation.sampling", {"torchvision", "timm", "segment_anything"}),
    ],
)
def test_importing_brings_little(code: str, without: set[str]) -> None:
    code += "; import sys; print(*sys.modules)"
    path = sources()
    run = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert not without & set(run.stdout.split())


ADAPTERS = "services.gateway.adapters."


def test_adapters_are_apart() -> None:
    """Only the gateway imports them, none imports another, and none needs the assistants' SDK."""
    for module in MODULES:
        for name in IMPORTS[module]:
            if not name.startswith(ADAPTERS):
                continue
            assert module.startswith("services.gateway."), f"{module} imports {name}"
            mine, theirs = (n.removeprefix(ADAPTERS).split(".")[0] for n in (module, name))
            shared = theirs == "adapter"
            assert module == "services.gateway.app" or shared or mine == theirs, (module, name)
    assert f"{ADAPTERS}mcp.server" not in IMPORTS["services.gateway.app"]

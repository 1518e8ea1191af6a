"""Ray is started in one place, which other users and hosts cannot reach."""

import ast
from collections.abc import Iterator
from itertools import pairwise

from tests.checkout import ROOT

STARTER = ROOT / "samclip_core/io/private_ray.py"
FOLDERS = ("client", "samclip_core", "services", "training", "benchmarks", "examples", "deploy")
STARTS = {"init", "client", "Cluster", "Node", "start_ray_node", "connect_to_cluster"}
"""Names of Ray with which a process starts or joins one."""


def starts(tree: ast.AST) -> Iterator[str]:
    """Yield each way in which a module starts Ray."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in STARTS and _of_ray(node.value):
            yield ast.unparse(node)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ray":
            yield from (alias.name for alias in node.names if alias.name in STARTS)
        elif isinstance(node, ast.List | ast.Tuple):
            words = [each.value for each in node.elts if isinstance(each, ast.Constant)]
            named = [str(word).rpartition("/")[2] for word in words]
            if ("ray", "start") in pairwise(named):
                yield "ray start"
        elif isinstance(node, ast.Call):
            for text in (a.value for a in node.args if isinstance(a, ast.Constant)):
                if isinstance(text, str) and "ray start" in text:
                    yield "ray start"


def _of_ray(node: ast.AST) -> bool:
    return ast.unparse(node).split(".")[0] == "ray"


def test_only_one_module_starts_ray() -> None:
    found = {}
    for path in (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        if ways := [*starts(ast.parse(path.read_text()))]:
            found[path] = ways
    assert found == {STARTER: ["ray.init", "ray.init"]}


def test_the_suite_starts_no_ray_by_accident() -> None:
    """Ray Data and Ray Train would otherwise start one in /tmp, on all interfaces."""
    from ray._private import auto_init_hook

    assert not auto_init_hook.enable_auto_connect

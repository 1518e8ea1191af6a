"""Packages of which we want some modules, and not what their own ``__init__`` brings in."""

import importlib.util
import sys
from typing import Any


def defer(package: str) -> None:
    """Let modules of ``package`` be imported alone: its ``__init__`` runs when its names are asked.

    For who has all of it already, or has it not, nothing changes.
    """
    spec = None if package in sys.modules else importlib.util.find_spec(package)
    if spec is None or spec.loader is None:
        return
    module, loader = importlib.util.module_from_spec(spec), spec.loader

    def load(name: str) -> Any:
        if name.startswith("__"):  # Python itself looks for some that a module need not have
            raise AttributeError(name)
        del vars(module)["__getattr__"]
        loader.exec_module(module)
        return getattr(module, name)

    vars(module)["__getattr__"] = load
    sys.modules[package] = module

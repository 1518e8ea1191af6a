"""Facts about the machine, and a load for one of its cores."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
INSTRUCTIONS = ("avx2", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
RUNTIMES = ("torch", "openvino", "onnxruntime", "ray")


def facts() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    values = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)
    }
    flags = values.get("flags", "").split()
    return {
        "processor": values.get("model name", platform.processor()),
        "cores": CORES,
        "instructions": [name for name in INSTRUCTIONS if name in flags],
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in RUNTIMES if find_spec(name)},
    }


@contextmanager
def busy_core() -> Iterator[None]:
    """Keep one core busy in another process until the end of the block."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()

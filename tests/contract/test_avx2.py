"""``make avx2`` limits every library that can be limited, by variables that processes inherit."""

import os
import platform
import subprocess
import sys

import pytest

from tests.checkout import sources

CODE = """
import cv2, numpy, openvino, pyarrow, torch
from numpy._core import _multiarray_umath
from threadpoolctl import threadpool_info
features = _multiarray_umath.__cpu_features__
names = "AVX512_SKX", "X86_V4", "AVX512_ICL", "AVX512_SPR"
assert not any(features.get(name) for name in names), features
blas = {each["architecture"] for each in threadpool_info() if each["user_api"] == "blas"}
assert blas == {"Haswell"}, blas
assert torch.backends.cpu.get_cpu_capability() == "AVX2"
assert pyarrow.runtime_info().simd_level == "avx2"
used = [name for name in cv2.getCPUFeaturesLine().split() if not name.endswith("?")]
assert not any("AVX512" in name for name in used), used
"""
"""Fails where a library still uses more."""
pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="AVX2 is x86's")


def run(*arguments: str, **variables: str) -> str:
    """Run Python without the limits of the test run itself, which hide what there is to limit."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": sources(), **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_library_obeys_its_variable() -> None:
    """NumPy would warn of a name that it does not know, and warnings are errors."""
    limits = dict(each.split("=") for each in run("-m", "tests.avx2").split())
    assert {"ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "OPENBLAS_CORETYPE"} <= set(limits)
    run("-c", CODE, **limits)

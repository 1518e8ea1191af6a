"""Print the environment variables that limit a test run to the instructions of AVX2.

ONNX Runtime and LanceDB have no such variable; tokenizers computes no floats.
"""

import cv2
from numpy._core import _multiarray_umath as numpy_core

LIMITS = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",  # OpenVINO, and PyTorch's convolutions
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",  # PyTorch's products of matrices
    "OPENBLAS_CORETYPE": "Haswell",  # those of NumPy and SciPy
    "OPENCV_IPP": "avx2",
    "ARROW_USER_SIMD_LEVEL": "AVX2",
}


def limits() -> dict[str, str]:
    """Return the variables; NumPy and OpenCV reject names of what this processor lacks."""
    found = numpy_core.__cpu_features__
    numpy_names = [name for name in numpy_core.__cpu_dispatch__ if _above(name) and found[name]]
    opencv_names = [
        name.strip("*")
        for name in cv2.getCPUFeaturesLine().split()
        if _above(name) and not name.endswith("?")  # not available
    ]
    return LIMITS | {
        "NPY_DISABLE_CPU_FEATURES": ",".join(numpy_names),
        "OPENCV_CPU_DISABLE": ",".join(opencv_names),
    }


def _above(name: str) -> bool:
    return "AVX512" in name or name == "X86_V4"


if __name__ == "__main__":
    print(*(f"{name}={value}" for name, value in limits().items() if value))

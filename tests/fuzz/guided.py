"""Run one target under atheris: ``python -m tests.fuzz.guided TARGET CORPUS …``.

The arguments after the target are libFuzzer's: corpus folders, and flags like -max_total_time=60.
"""

import sys
import warnings

import atheris

with atheris.instrument_imports(
    include=["samclip", "samclip_core", "services", "PIL"], enable_loader_override=False
):
    from tests.fuzz.targets import TARGETS

if __name__ == "__main__":
    warnings.simplefilter("error")
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()

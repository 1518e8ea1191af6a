"""``python -m tests.fuzz.guided TARGET CORPUS …``: one target under atheris, as libFuzzer wants.

What follows the target is libFuzzer's own: folders of inputs, and flags like -max_total_time=60.
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

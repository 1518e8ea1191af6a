"""Peak memory of code, in a process of its own."""

import subprocess
import sys

# Not ru_maxrss on Linux: it begins with the memory of the process that started this one.
_PEAK = """
import re, resource, sys
def peak():
    if sys.platform == "linux":
        with open("/proc/self/status") as status:
            return int(re.findall(r"VmHWM:\\s+(\\d+)", status.read())[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
{imports}
before = peak()
{code}
print("peak", peak() - before)
"""


def growth_mb(imports: str, code: str, *args: object) -> float:
    """Return by how many MB the code lets its process grow, its imports not counted.

    ``sys.argv[1:]`` has the arguments.
    """
    whole = _PEAK.format(imports=imports, code=code)
    command = [sys.executable, "-W", "error", "-c", whole, *map(str, args)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    kilobytes = ran.stdout.rpartition("peak ")[2]
    return int(kilobytes) / 1000 / (1000 if sys.platform == "darwin" else 1)

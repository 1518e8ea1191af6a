"""What another user of the machine reaches: paths, Unix sockets and ports. Only root can ask."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

NOBODY = 65534
REACH = f"""
import os, socket, sys
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
for path in sys.stdin.read().split("\\0"):
    for right in (os.R_OK, os.W_OK, os.X_OK):
        if os.access(path, right):
            print(path)
    try:
        os.rename(path, path + ".taken")
        print("renamed", path)
    except OSError:
        pass
    line = socket.socket(socket.AF_UNIX)
    try:
        line.connect(path)
        print("connected to", path)
    except OSError:
        pass
"""
"""Script that prints each path which another user may read, write, enter, rename or connect to."""
ASK_RAY = """
import sys
from ray._raylet import GcsClient
print(GcsClient(address=sys.argv[1]).internal_kv_keys(b"", None, timeout=20))
"""


def reached(paths: Iterable[Path]) -> str:
    """Return a line for each way in which another user reaches one of the paths."""
    script = [sys.executable, "-Ic", REACH]
    names = "\0".join(map(str, paths))
    return subprocess.run(script, input=names, stdout=subprocess.PIPE, text=True, check=True).stdout


def ray_answers(port: int, token: str, home: Path) -> str:
    """Return the answer of Ray's control store at a port to a caller with the token, or ""."""
    environment = {"HOME": str(home), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    asked = [sys.executable, "-c", ASK_RAY, f"127.0.0.1:{port}"]
    return subprocess.run(asked, capture_output=True, text=True, env=environment).stdout

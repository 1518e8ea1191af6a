"""``python -IS fork_client.py SOCKET PYTHON ARGUMENTS``: let the fork server run a command.

It runs once for each worker, so it imports few modules.
"""

import json
import os
import socket
import sys

LONGEST = 1 << 20
"""Bytes of a command with its environment, which are a few thousand."""


def main() -> None:
    """Hand the command over; run it here if there is no answer."""
    address, python, *arguments = sys.argv[1:]
    message = json.dumps({"arguments": arguments, "environment": dict(os.environ)}).encode()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
            server.connect(address)
            socket.send_fds(server, [message], [0, 1, 2])
            # Without a timeout, or a slow server might start the worker for a second time.
            forked = server.recv(16)
    except OSError:
        forked = b""
    if not forked:
        os.execv(python, [python, *arguments])


if __name__ == "__main__":
    main()

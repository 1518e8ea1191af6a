"""``python -IS fork_client.py SOCKET PYTHON ARGUMENTS``: have the fork server run a command.

This runs once per worker, so it imports few modules.
"""

import json
import os
import socket
import sys

LONGEST = 1 << 20
"""Most bytes of a command with its environment, which usually has a few thousand."""


def main() -> None:
    """Send the command to the fork server; run it here if there is no answer."""
    address, python, *arguments = sys.argv[1:]
    message = json.dumps({"arguments": arguments, "environment": dict(os.environ)}).encode()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
            server.connect(address)
            socket.send_fds(server, [message], [0, 1, 2])
            # No timeout: it would start the worker twice if the server is slow.
            forked = server.recv(16)
    except OSError:
        forked = b""
    if not forked:
        os.execv(python, [python, *arguments])


if __name__ == "__main__":
    main()

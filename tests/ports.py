"""Ports for the services and servers of the tests."""

import secrets

from services.launch.ports import BLOCKS, is_free


def free_port(count: int = 1) -> int:
    """Return the first of ``count`` adjacent ports on which no process listens.

    The ports lie above the blocks that services reserve, and below the range that the kernel
    assigns to outgoing connections.
    """
    while True:
        first = BLOCKS[-1].stop + secrets.randbelow(6_000)
        if is_free(range(first, first + count)):
            return first

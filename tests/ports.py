"""Ports for the services and servers of the tests."""

import secrets
from itertools import count as numbers

from services.launch.isolation import BLOCKS, is_free

PORTS = range(BLOCKS[-1].stop, BLOCKS[-1].stop + 6_000)
"""Above the blocks that services reserve, and below the range that the kernel assigns to outgoing
connections."""
_turns = numbers(secrets.randbelow(len(PORTS)))


def free_port(count: int = 1) -> int:
    """Return the first of ``count`` adjacent ports on which no process listens.

    Ports come in turn, so that one that is not in use yet is not given a second time.
    """
    while True:
        first, *_ = (PORTS[next(_turns) % len(PORTS)] for _ in range(count))
        if is_free(range(first, first + count)):
            return first

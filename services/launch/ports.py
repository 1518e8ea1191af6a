"""Reserve a block of ports for one service before its processes listen there.

The processes listen seconds after their ports were chosen, and gRPC shares a port with another
service without an error. So a socket at the last port of the block reserves it: the kernel gives
such a port to one process at a time and frees it when that process ends.
"""

import contextlib
import random
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from services.settings import SettingsError

SIZE = 210
"""Two ports for Serve's proxies, 200 for replicas, four unused ones of Serve, two spare, one for
what replicas ask the front door, and the last to reserve the block."""
BLOCKS = [range(first, first + SIZE) for first in range(20_000, 26_000 - SIZE + 1, SIZE)]
"""All blocks are below the ephemeral ports, which the system may give to any connection."""


@contextmanager
def reserved(besides: Collection[int] = ()) -> Iterator[range]:
    """Reserve a block of free ports without any of ``besides`` while the context lasts.

    Raises SettingsError if there is none.
    """
    for block in random.sample(BLOCKS, len(BLOCKS)):
        with socket.socket() as holder:
            try:
                holder.bind(("", block[-1]))
            except OSError:  # another service has reserved it
                continue
            if not set(besides) & set(block) and is_free(block[:-1]):
                yield block
                return
    raise SettingsError(
        f"no {SIZE} consecutive ports are free from {BLOCKS[0].start} to {BLOCKS[-1].stop - 1}: "
        "stop a service, or start this one in its own network namespace"
    )


def is_free(ports: range) -> bool:
    """Return whether no process listens at any of the ports."""
    with contextlib.ExitStack() as probes:
        try:
            for port in ports:
                probe = probes.enter_context(socket.socket())
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ignore TIME_WAIT
                probe.bind(("", port))
        except OSError:
            return False
    return True

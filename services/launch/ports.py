"""Ports that a service has to itself: a block of them, reserved before anybody listens there.

Processes of a service listen seconds after their ports were chosen, and gRPC would even share a
port with another service without an error. So a block is held by a socket of a name of its own,
which the kernel gives to one process at a time, and takes back when that process ends.
"""

import contextlib
import random
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from services.settings import SettingsError

SIZE = 210
"""Two for Serve's proxies, 200 for replicas and four that nobody calls, with a few to spare."""
BLOCKS = [range(first, first + SIZE) for first in range(20_000, 26_000 - SIZE + 1, SIZE)]
"""Below the ports that the system gives to connections, any of them at any time."""


@contextmanager
def reserved(besides: Collection[int] = ()) -> Iterator[range]:
    """Reserve a block where nobody listens, none of ``besides`` in it, while the context lasts.

    Raises SettingsError.
    """
    for block in random.sample(BLOCKS, len(BLOCKS)):
        with socket.socket(socket.AF_UNIX) as holder:
            try:
                holder.bind(f"\0samclip ports from {block.start}")
            except OSError:  # another service has it
                continue
            if not set(besides) & set(block) and is_free(block):
                yield block
                return
    raise SettingsError(
        f"no {SIZE} ports in a row are free from {BLOCKS[0].start} to {BLOCKS[-1].stop - 1}: stop "
        "a service, or start this one in a network of its own"
    )


def is_free(ports: range) -> bool:
    """Whether nobody listens at any of the ports now."""
    with contextlib.ExitStack() as probes:
        try:
            for port in ports:
                probe = probes.enter_context(socket.socket())
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closed connections
                probe.bind(("", port))
        except OSError:
            return False
    return True

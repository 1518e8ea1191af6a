"""A program in a process of its own, which answers each line of JSON with one."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from subprocess import PIPE, Popen
from typing import Any

Ask = Callable[[Any], Any]


@contextmanager
def running(command: Sequence[str], **options: Any) -> Iterator[Ask]:
    """Start the program; yields a function that asks it. ``options`` are those of ``Popen``.

    The function raises RuntimeError if the program ends without an answer.
    """
    with Popen(command, stdin=PIPE, stdout=PIPE, text=True, **options) as process:

        def ask(question: Any) -> Any:
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"{process.args} exited without an answer")
            return json.loads(line)

        try:
            yield ask
        finally:
            process.stdin.close()  # ends the program

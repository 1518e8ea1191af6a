"""Which errors of a worker end a run: those that a restart would only meet again."""

from typing import Any

from ray.train import UserCallback

from samclip_core.errors import SamClipError

FINAL = (
    ArithmeticError,  # a loss that is not finite
    AssertionError,
    FileNotFoundError,
    ImportError,
    LookupError,
    SamClipError,
    TypeError,
    ValueError,
)
"""Errors that follow from the recipe, the files or the code. After others, such as a lost process
or a lost connection to it, Ray restarts the workers."""


class EndOnFinalErrors(UserCallback):
    """Raise a worker's final error in Ray's controller, which then does not restart the workers."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Ray Train calls this before it decides on a restart."""
        for error in worker_exceptions.values():
            if isinstance(error, FINAL):
                raise error

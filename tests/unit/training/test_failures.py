import pytest
from ray.exceptions import RayActorError

from samclip_core.errors import CheckpointError
from training.failures import EndOnFinalErrors

LOST = (RayActorError(), RuntimeError("Connection closed by peer"), ConnectionError(), OSError())


@pytest.mark.parametrize(
    "error",
    [
        FloatingPointError("sam"),
        ValueError("set"),
        FileNotFoundError("sam"),
        CheckpointError("sam"),
    ],
)
def test_an_error_that_would_come_again_is_raised_whatever_else_failed(error: Exception):
    with pytest.raises(type(error)) as raised:
        EndOnFinalErrors().after_exception(None, {0: LOST[1], 3: error})
    assert raised.value is error


def test_lost_workers_are_left_to_ray():
    EndOnFinalErrors().after_exception(None, dict(enumerate(LOST)))

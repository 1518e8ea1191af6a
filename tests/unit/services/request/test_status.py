"""Each error has one status, over the wire and back."""

import pytest
from grpc import StatusCode

from samclip_core import errors
from services.request.status import INTERNAL, MAX_MESSAGE, TABLE, describe, rebuild


@pytest.mark.parametrize(
    ("error", "code", "http"),
    [
        (errors.InvalidRequest, "INVALID_ARGUMENT", 400),
        (errors.InvalidImage, "INVALID_ARGUMENT", 400),
        (errors.ImageTooLarge, "INVALID_ARGUMENT", 413),
        (errors.UnsupportedImage, "INVALID_ARGUMENT", 415),
        (errors.InvalidPrompt, "INVALID_ARGUMENT", 400),
        (errors.InvalidLabels, "INVALID_ARGUMENT", 400),
        (errors.KeyUnknown, "FAILED_PRECONDITION", 409),
        (errors.NotFound, "NOT_FOUND", 404),
        (errors.Unauthenticated, "UNAUTHENTICATED", 401),
        (errors.PermissionDenied, "PERMISSION_DENIED", 403),
        (errors.Overloaded, "RESOURCE_EXHAUSTED", 429),
        (errors.DeadlineExceeded, "DEADLINE_EXCEEDED", 504),
        (errors.Unavailable, "UNAVAILABLE", 503),
    ],
)
def test_each_error_has_its_status(error, code, http):
    failure = describe(error("what happened"), "r1")
    assert (failure.status.code.name, failure.status.http) == (code, http)
    assert failure.message == "what happened"
    assert failure.request_id == "r1"
    later = {"retry-after": "1"} if http in (429, 503) else {}
    assert failure.headers == later


def test_only_the_root_and_broken_checkpoints_are_not_in_the_table():
    def tree(error):
        return {error}.union(*map(tree, error.__subclasses__()))

    assert tree(errors.SamClipError) - set(TABLE) == {
        errors.SamClipError,
        errors.CheckpointError,
        errors.HeadError,
    }


@pytest.mark.parametrize(
    "error",
    [ValueError("secret path /etc"), errors.CheckpointError("secret"), KeyboardInterrupt("secret")],
)
def test_anything_else_is_internal_and_tells_only_the_request_id(error):
    failure = describe(error, "r1")
    assert failure.status is INTERNAL
    assert failure.message == "internal error; request id r1"
    assert failure.kind == ""


def test_a_subclass_has_the_status_of_its_parent_and_a_long_message_is_cut():
    class BrokenWebp(errors.InvalidImage):
        pass

    failure = describe(BrokenWebp("x" * 100_000), "r")
    assert (failure.kind, failure.message) == ("InvalidImage", "x" * MAX_MESSAGE)


def test_an_error_survives_the_wire():
    for error in TABLE:
        failure = describe(error("the message"), "r1")
        rebuilt = rebuild(failure.status.code, failure.kind, failure.message)
        assert (type(rebuilt), str(rebuilt)) == (error, "the message")
    rebuilt = rebuild(StatusCode.INTERNAL, "", "internal error; request id r1")
    assert describe(rebuilt, "r2").message == "internal error; request id r2"


def test_a_status_without_a_kind_becomes_the_plainest_error_of_that_code():
    assert type(rebuild(StatusCode.INVALID_ARGUMENT, "", "no")) is errors.InvalidRequest
    assert type(rebuild(StatusCode.RESOURCE_EXHAUSTED, "", "no")) is errors.Overloaded

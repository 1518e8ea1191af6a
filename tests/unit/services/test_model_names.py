"""Requests name the model that answers, in every rpc in which one does."""

import pytest
from google.protobuf.message_factory import GetMessageClass
from samclip.rpcs import RPCS
from samclip.v1 import samclip_pb2 as pb

from services.request import messages
from tests.in_process import Caller

NAMED = [rpc for rpc, method in RPCS.items() if "model" in method.input_type.fields_by_name]


async def test_an_unknown_name_is_refused_with_the_names_that_there_are(caller: Caller) -> None:
    (served,) = (await caller("ListModels", pb.ListModelsRequest())).models
    assert (served.default, served.state) == (True, "loaded")
    assert len(NAMED) == 15
    for rpc in NAMED:
        asked = GetMessageClass(RPCS[rpc].input_type)
        request = messages.to_message(asked, {"model": "absent"}, form=False)
        if rpc == "StreamEverything":
            with pytest.raises(Exception, match="no model 'absent'"):
                await anext(aiter(caller.stream(rpc, request)))
            continue
        code, details = await caller.refused(rpc, request)
        assert code == "NOT_FOUND"
        assert f"no model 'absent' is served here, only {served.name!r}" in details

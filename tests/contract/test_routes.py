"""What a head adds to files outside its own folder: the rest follows from the route table."""

import re

import pytest

from services.request.routes import APPLICATIONS
from tests.checkout import ROOT

FOLDERS = ("client/samclip", "samclip_core", "services")
SNIPPETS = "services/gateway/playground/snippets.js"


@pytest.mark.parametrize(
    ("name", "service"),
    [
        (name, service)
        for name, application in sorted(APPLICATIONS.items())
        if name != "backbone"  # the heads call it
        for service in application.services
    ],
)
def test_a_service_is_named_in_the_route_table_and_in_its_own_module_alone(
    name: str, service: str
) -> None:
    application = APPLICATIONS[name]
    named = {
        str(file.relative_to(ROOT))
        for folder in FOLDERS
        for pattern in ("*.py", "*.cfg", "*.js")
        for file in (ROOT / folder).rglob(pattern)
        if "_pb2" not in file.name and re.search(rf"\b{service}", file.read_text())
    }
    module = application.module.replace(".", "/") + ".py"
    assert named - {SNIPPETS} == {"services/request/routes.py", module}

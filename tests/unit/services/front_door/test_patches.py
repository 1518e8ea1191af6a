"""The names of Ray that the service replaces."""

import re
import tomllib

import pytest
from ray.serve._private import grpc_util, haproxy_templates

from services.front_door import inner_ports, patches
from tests.checkout import ROOT


def test_the_installed_ray_has_every_name_that_is_replaced() -> None:
    patches.check()


@pytest.mark.parametrize(
    ("module", "name"),
    [(grpc_util, "gRPCGenericServer"), (haproxy_templates, "HAPROXY_CONFIG_TEMPLATE")],
)
def test_a_missing_name_is_named_with_the_version_to_install(
    monkeypatch: pytest.MonkeyPatch, module: object, name: str
) -> None:
    monkeypatch.delattr(module, name)
    for starts in (patches.check, inner_ports.guard):  # `samclip serve`, and each replica
        with pytest.raises(
            RuntimeError, match=rf"^Ray \S+ is .* of Ray 2\.60 .*{name}.*=={patches.RAY}"
        ):
            starts()


def test_another_haproxy_template_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(haproxy_templates, "HAPROXY_CONFIG_TEMPLATE", "frontend other\n")
    with pytest.raises(RuntimeError, match=r"0 times, expected once.*pip install"):
        patches.check()


def test_pip_installs_the_minor_version_of_ray_that_the_names_are_from() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    (pin,) = (each for each in extras["serve"] if each.startswith("ray["))
    major, minor = map(int, re.findall(r"\d+", patches.RAY))
    assert pin == f"ray[serve]>={major}.{minor},<{major}.{minor + 1}"

"""requirements.lock matches pyproject.toml; ``make lock`` updates it."""

import re
import tomllib

from packaging.requirements import Requirement

from tests.checkout import ROOT

NOT_LOCKED = {"samclip", "torch", "torchvision"}  # torch wheels depend on the machine


def test_the_lock_has_what_the_service_needs_within_its_ranges() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [Requirement(line.rstrip(" \\")) for line in lines if re.match("[a-z]", line)]
    locked = {pin.name: str(pin.specifier).removeprefix("==") for pin in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = map(Requirement, [*project["dependencies"], *extras["core"], *extras["serve"]])
    for requirement in wanted:
        name = re.sub("[._]", "-", requirement.name).lower()
        if name not in NOT_LOCKED:
            assert requirement.specifier.contains(locked[name]), f"{name}: run make lock"


def test_every_pin_has_its_hashes() -> None:
    text = (ROOT / "requirements.lock").read_text()
    pins = re.findall(r"^[a-z][^ ]*==.*?(?=^[a-z]|\Z)", text, re.DOTALL | re.MULTILINE)
    assert len(pins) > 80
    assert all("--hash=sha256:" in pin for pin in pins)
    assert not re.search("^(torch|nvidia|cuda|triton)", text, re.MULTILINE)

"""A head that cannot be imported is told before the service starts, with the reason."""

from pathlib import Path

import pytest

from services.heads.own.check import check
from services.settings import SettingsError

FAULTS = {
    "import no_such_package": "ModuleNotFoundError: No module named 'no_such_package'",
    "class Own: pass": "has no class Own that is a samclip_core.Head",
    "from samclip_core import Head\nclass Own(Head):\n    class Parameters: pass": "no JSON schema",
}


@pytest.mark.parametrize("code", FAULTS)
def test_a_fault_is_told(code: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "own_fault.py"
    file.write_text(f"{code}\n")
    with pytest.raises(SettingsError, match="cannot be served: see above"):
        check([f"{file}:Own"])
    assert FAULTS[code] in capfd.readouterr().err


def test_none_is_no_fault() -> None:
    check([])
    check(["tests.own_heads:Parts"])

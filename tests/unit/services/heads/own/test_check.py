"""A head that cannot be imported is told before the service starts, with the reason."""

from pathlib import Path

import pytest

from services.heads.own import check as own_check
from services.heads.own.check import check
from services.settings import SettingsError

FAULTS = {
    "import no_such_package": "ModuleNotFoundError: No module named 'no_such_package'",
    "class Own: pass": "has no class Own that is a samclip_core.Head",
    "from samclip_core import Head\nclass Own(Head):\n    class Parameters: pass\n"
    "    def answer(self, features, parameters): return {}": "no JSON schema",
    "from samclip_core import Head\nclass Own(Head):\n    def anwser(self): pass": "has no method "
    "answer(self, features, parameters)",
    "import sys\nsys.exit()": "ends its process when it is imported",
}


@pytest.mark.parametrize("code", FAULTS)
def test_a_fault_is_told(code: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "own_fault.py"
    file.write_text(f"{code}\n")
    with pytest.raises(SettingsError, match="cannot be served: see above"):
        check([f"{file}:Own"])
    assert FAULTS[code] in capfd.readouterr().err


def test_an_import_that_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_check, "IMPORT_S", 0.01)
    with pytest.raises(SettingsError, match="cannot be imported in"):
        check(["tests.own_heads:Parts"])


def test_files_of_one_name_do_not_see_each_other(tmp_path: Path) -> None:
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "shop_head.py").write_text(
            "from __future__ import annotations\n"
            "from dataclasses import dataclass\n"
            "from samclip_core import Head\n"
            f"Size{number} = int\n"
            "class Own(Head):\n    @dataclass\n    class Parameters:\n"
            f"        size: Size{number} = 0\n"
            "    def answer(self, features, parameters): return {}\n"
        )
    check([f"{tmp_path}/{number}/shop_head.py:Own" for number in range(2)])


def test_none_is_no_fault() -> None:
    check([])
    check(["tests.own_heads:Parts"])

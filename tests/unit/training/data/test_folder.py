import argparse

import pytest

from training.claims import pipeline, retention, two_heads, wise_ft
from training.data.folder import photograph_sets
from training.distillation import embeddings


@pytest.mark.parametrize(
    ("given", "variable", "expected"),
    [("/given", "/set", "/given"), (None, "/set", "/set"), ("s3://bucket/sets", "", None)],
)
def test_the_flag_comes_before_the_variable(
    given: str | None, variable: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SAMCLIP_DATA", variable)
    found = photograph_sets(argparse.ArgumentParser(), "--data", given)
    assert found == (expected or given)


@pytest.mark.parametrize(
    ("command", "flag", "more"),
    [
        (embeddings.main, "--data", []),
        (pipeline.main, "--root", []),
        (two_heads.main, "--root", []),
        (retention.main, "--root", ["--sam", "sam.pt"]),
        (wise_ft.main, "--root", ["--sam", "sam.pt"]),
    ],
)
def test_without_either_a_command_says_what_is_expected(
    command, flag: str, more: list[str], monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.delenv("SAMCLIP_DATA", raising=False)
    with pytest.raises(SystemExit) as exit_:
        command(more)
    assert exit_.value.code == 2
    assert f"no photographs: give {flag} or set SAMCLIP_DATA" in capsys.readouterr().err

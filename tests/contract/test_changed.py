"""``make test ARGS=--changed`` runs the tests that a change may concern."""

import subprocess
from pathlib import Path

import pytest

from tests.changed import Change, files_since
from tests.import_graph import TESTS

RUNNER = "tests.unit.services.heads.test_runner"
GEOMETRY = "tests.unit.samclip_core.test_geometry"
JOURNAL = "training/journal.py"


@pytest.mark.parametrize(
    ("file", "test", "fixtures", "concerns"),
    [
        ("services/heads/runner.py", RUNNER, (), True),
        ("samclip_core/geometry.py", RUNNER, (), True),  # which others import
        ("services/heads/runner.py", GEOMETRY, (), False),
        (JOURNAL, GEOMETRY, (), False),
        ("services/retrieval/app.py", GEOMETRY, ("caller",), True),  # which starts all services
        ("tests/unit/services/conftest.py", RUNNER, (), True),
        ("tests/unit/training/conftest.py", RUNNER, (), False),
        ("tests/vectors.py", "tests.integration.test_backup", (), True),
        ("tests/vectors.py", GEOMETRY, (), False),
        (JOURNAL, "tests.contract.test_imports", (), True),  # which reads all
        ("docs/api.md", "tests.contract.test_documents", (), True),
        ("docs/api.md", GEOMETRY, (), False),
        ("pyproject.toml", GEOMETRY, (), True),
    ],
)
def test_what_a_change_concerns(
    file: str, test: str, fixtures: tuple[str, ...], concerns: bool
) -> None:
    assert Change({file}).concerns(TESTS[test], fixtures) is concerns


def test_what_has_changed_since_a_branch(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        user = ("-c", "user.name=Ann", "-c", "user.email=ann@example.org")
        subprocess.run(["git", *user, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-b", "main")
    for name in ("same", "edited", "gone", "moved"):
        (tmp_path / name).write_text(name)
    git("add", ".")
    git("commit", "-m", "main")
    git("checkout", "-b", "ours")
    git("mv", "moved", "new place")
    git("rm", "gone")
    git("commit", "-m", "ours")
    (tmp_path / "edited").write_text("anew")
    (tmp_path / "new").touch()
    expected = {"edited", "gone", "moved", "new place", "new"}
    assert files_since("main", tmp_path) == expected
    with pytest.raises(pytest.UsageError, match="git merge-base failed"):
        files_since("nowhere", tmp_path)

"""The commands, options, settings, files and headings in the documents exist."""

import io
import re
import runpy
import sys
from contextlib import redirect_stdout
from functools import cache, partial
from itertools import takewhile
from pathlib import Path

import pytest
from samclip import cli

from examples import gallery
from samclip_core.io import checkpoint, manifest
from tests import documents
from tests.checkout import ROOT
from tests.documents import DOCUMENTS

SHOWN = [(document, words) for document in DOCUMENTS for words in documents.shown(document)]
PROGRAMS = {
    *("pip", "ray", "export", "source", "set", "docker", "kubectl", "helm", "serve", "chown", "cp"),
    *("mkdir", "cat", "echo", "install", "nuctl", "label-studio", "npx", "curl"),
}


def name(document: Path) -> str:
    return str(document.relative_to(ROOT))


@cache
def help_of(program: str, *words: str) -> str:
    """Return what samclip or a module prints for ``--help``; the documents show many often."""
    shown = io.StringIO()
    ask = partial(cli.main, [*words, "--help"])
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(shown):
        if program != "samclip":
            patch.setattr(sys, "argv", [program, "--help"])
            patch.delitem(sys.modules, program, raising=False)  # another test may have imported it
            ask = partial(runpy.run_module, program, run_name="__main__")
        with pytest.raises(SystemExit) as exit_:
            ask()
    assert not exit_.value.code
    return shown.getvalue()


@pytest.mark.parametrize(
    "words", [words for _, words in SHOWN], ids=[f"{name(d)}: {' '.join(w)}" for d, w in SHOWN]
)
def test_commands_exist(words: list[str]) -> None:
    if "training.train" in words:
        words = ["samclip", "train", *words[words.index("training.train") + 1 :]]
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[0] in ("samclip", "python"):
        plain = [*takewhile(lambda word: re.fullmatch("[a-z-]+", word), words[1:])]
        if words[0] == "samclip":
            command = ["samclip", *plain[: 2 if plain[0] in ("cache", "keys") else 1]]
        else:
            command = words[2:3]
        shown = help_of(*command)
        for option in (word for word in words if word.startswith("--")):
            assert option in shown, option
    else:
        assert words[0] in PROGRAMS


def test_the_readme_starts_with_the_service_and_the_tests() -> None:
    _, start = (ROOT / "README.md").read_text().split("## Start\n")
    block, _ = start.split("```console\n")[1].split("```", 1)
    assert {"$ make serve", "$ make test"} <= {line.split("  ")[0] for line in block.splitlines()}


@pytest.mark.parametrize("document", documents.MADE, ids=name)
def test_a_table_is_what_the_code_says(document: Path) -> None:
    assert documents.with_table(document) == document.read_text(), "run make docs"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_figures_are_those_that_were_measured(document: Path) -> None:
    assert documents.with_figures(document.read_text()) == document.read_text(), "run make docs"


def test_the_figures_are_of_the_bundled_checkpoint() -> None:
    files, _ = manifest.read(checkpoint.BUNDLED / "edge")
    for file in (checkpoint.CONFIG, checkpoint.WEIGHTS):
        assert documents.MEASURED[file] == files[file], "run samclip eval --suite documents"
    marked = ["docs/edge.md", "docs/api.md", "docs/collections.md", "training/RESULTS.md"]
    for document in marked:
        assert documents.MARKED.search((ROOT / document).read_text()), document


def test_a_figure_has_the_digits_and_the_interval_that_its_document_shows() -> None:
    text = (
        "1 %<!-- words_found -->, 1.0 % (0.0 to 2.0)<!-- words_found -->, 5<!-- words_present -->"
    )
    share, low, high = (
        100 * documents.MEASURED[f"words_found{end}"] for end in ("", "_low", "_high")
    )
    assert documents.with_figures(text) == (
        f"{share:.0f} %<!-- words_found -->, {share:.1f} % ({low:.1f} to {high:.1f})"
        f"<!-- words_found -->, {documents.MEASURED['words_present']}<!-- words_present -->"
    )


def test_the_gallery_is_the_one_that_the_program_writes() -> None:
    assert (ROOT / "docs/gallery.md").read_text() == gallery.page()
    pictures = {f"{name}.jpg" for name in (*gallery.SHEETS, *(e.name for e in gallery.ENTRIES))}
    assert {path.name for path in (ROOT / "docs/gallery").iterdir()} == pictures


def headings(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_lead_to_files_and_headings(document: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)", document.read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link

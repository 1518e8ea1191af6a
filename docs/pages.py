"""The hook of mkdocs.yml: the repository's documents under their own paths, and the reference.

A document's links are the same in the repository and on the site. Files that documents link to are
copied; a link to a folder, which a site does not have, becomes its text.
"""

import os
import re
from pathlib import Path

import samclip
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docs import reference
from tests.checkout import ROOT
from tests.documents import DOCUMENTS

LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^):]*)\)")


# mkdocs would make README.md the start page.
ADDRESSES = {"docs/tasks.md": "index.html", "README.md": "README.html"}


def link_targets(document: Path) -> list[Path]:
    """Return the files and folders of this repository that a document links to."""
    links = re.findall(r"\]\(([^)]+)", document.read_text())
    paths = [link.partition("#")[0] for link in links if "://" not in link]
    return [Path(os.path.normpath(document.parent / path)) for path in paths if path]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Name the version on every page, and put each of docs/integrations into the navigation."""
    config.site_name = f"{config.site_name} {samclip.__version__}"
    pages = sorted((ROOT / "docs/integrations").glob("*.md"))
    (section,) = (part for part in config.nav or [] if "Integrations" in part)
    section["Integrations"] = [str(page.relative_to(ROOT)) for page in pages]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the documents, the files that they link to, and the generated reference."""
    linked = {target for document in DOCUMENTS for target in link_targets(document)}
    for path in {*DOCUMENTS, *(target for target in linked if target.is_file())}:
        name = str(path.relative_to(ROOT))
        file = File.generated(config, name, abs_src_path=str(path))
        if name in ADDRESSES:
            file.dest_uri = ADDRESSES[name]
        files.append(file)
    for name, text in reference.pages().items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace links to folders by their text, and forget tags of a hub's cards.

    The search ranks a page whose tags have a word of the question above all others.
    """
    page.meta.pop("tags", None)
    folder = ROOT / Path(page.file.src_uri).parent

    def link(found: re.Match[str]) -> str:
        return found[1] if found[2] and (folder / found[2]).is_dir() else found[0]

    return LINK.sub(link, markdown)

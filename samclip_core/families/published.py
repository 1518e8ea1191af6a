"""Published files and models: their addresses, licences, sizes and figures."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path("~/.cache/samclip/sources")
"""The copies of published files; a model can be converted again from them without a download."""
HUB = "hf://"
NOT_PUBLISHED = "not published"
BOXES = "COCO AP {} with ViTDet's boxes ({}'s page)"
"""A figure of masks."""


@dataclass(frozen=True)
class Source:
    """Files that somebody publishes, with their licence.

    ``address`` is ``hf://OWNER/NAME@REVISION`` of the Hugging Face hub, or the address of a folder.
    ``files`` has the SHA-256 of each file by its name, or "" where only the hub states it.
    ``megabytes`` is about the size of the weights, which are one of them.
    """

    address: str
    licence: str
    files: Mapping[str, str] = field(hash=False)
    megabytes: int = 0

    @property
    def folder(self) -> Path:
        """The folder of this machine's copies."""
        if not self.address.startswith(HUB):
            return FOLDER.expanduser() / self.address.partition("://")[2]
        repository, revision = self.on_hub
        owner, _, name = repository.partition("/")
        return FOLDER.expanduser() / owner / revision / name

    @property
    def missing(self) -> list[str]:
        """The files of which this machine has no copy."""
        return [name for name in self.files if not (self.folder / name).is_file()]

    def url(self, name: str) -> str:
        """Return the address of a file, for a browser."""
        if not self.address.startswith(HUB):
            return f"{self.address}/{name}"
        repository, revision = self.on_hub
        return f"https://huggingface.co/{repository}/resolve/{revision}/{name}"

    @property
    def on_hub(self) -> tuple[str, str]:
        """The repository and the revision."""
        repository, _, revision = self.address.removeprefix(HUB).partition("@")
        return repository, revision or "main"


@dataclass(frozen=True)
class Published:
    """A published model: a pair, or an encoder for everything that needs the others' heads.

    ``millions`` of parameters and ``gflop`` per new image (two per multiplication) are those of the
    image encoders. ``words``, ``masks`` and ``maps`` are published figures with their sources;
    ``maps`` says first whether patches are aligned with texts. ``open_clip`` is open_clip's name of
    ``clip`` and of its weights, if the files do not describe themselves.
    """

    name: str
    use: str
    sam: Source
    clip: Source
    radio: Source | None
    millions: int
    gflop: int
    words: str
    masks: str
    maps: str
    open_clip: str = ""

    @property
    def sources(self) -> list[Source]:
        """What the checkpoint is made of."""
        return [source for source in (self.radio, self.sam, self.clip) if source]

    @property
    def gigabytes(self) -> float:
        """About the size of the downloads."""
        return round(sum(source.megabytes for source in self.sources) / 1000, 1)

    @property
    def licences(self) -> list[str]:
        """The licence of each source."""
        return list(dict.fromkeys(source.licence for source in self.sources))

    @property
    def not_pinned(self) -> list[str]:
        """The sources whose files are those of the hub's newest commit."""
        addresses = [source.address for source in self.sources]
        return [a for a in addresses if a.startswith("hf://") and "@" not in a]


@dataclass(frozen=True)
class Half:
    """A published model that a pair has for masks or for words; the fields are ``Published``'s."""

    source: Source
    millions: int
    gflop: int
    figures: str = NOT_PUBLISHED
    maps: str = ""
    open_clip: str = ""


def pair(name: str, use: str, masks: Half, words: Half) -> Published:
    """Return the pair of two halves."""
    size, cost = masks.millions + words.millions, masks.gflop + words.gflop
    figures = words.figures, masks.figures, words.maps, words.open_clip
    return Published(name, use, masks.source, words.source, None, size, cost, *figures)

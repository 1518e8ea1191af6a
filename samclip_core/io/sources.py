"""Published weights: their addresses, and this machine's copies of them.

A copy that a user has put into its place by hand is used as a download is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError

from samclip_core.errors import CheckpointError
from samclip_core.io import checkpoint, hub

FOLDER = Path("~/.cache/samclip/sources")
"""The copies; a model can be converted again from them without a download."""
_HUB = "hf://"
WEIGHTS = (
    "open_clip_model.safetensors",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
)
"""Weights on a model's page, the preferred form first."""
DESCRIPTIONS = (
    *("open_clip_config.json", "config.json", "preprocessor_config.json"),
    *("tokenizer.json", "tokenizer_config.json"),
)
"""Files that describe a model and its tokenizer."""


@dataclass(frozen=True)
class Source:
    """Files that somebody publishes, with their licence.

    ``address`` is ``hf://OWNER/NAME@REVISION`` of the Hugging Face hub, or the address of a folder.
    ``files`` has the SHA-256 of each file by its name, or "" where only the hub states it.
    """

    address: str
    licence: str
    files: Mapping[str, str] = field(hash=False)

    @property
    def folder(self) -> Path:
        """The folder of this machine's copies."""
        if not self.address.startswith(_HUB):
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
        if not self.address.startswith(_HUB):
            return f"{self.address}/{name}"
        repository, revision = self.on_hub
        return f"https://huggingface.co/{repository}/resolve/{revision}/{name}"

    @property
    def on_hub(self) -> tuple[str, str]:
        """The repository and the revision."""
        repository, _, revision = self.address.removeprefix(_HUB).partition("@")
        return repository, revision or "main"


def obtain(sources: Sequence[Source]) -> None:
    """Download the files that are missing, and compare all with their digests.

    Shows progress on standard error. Raises CheckpointError for a file that cannot be downloaded,
    after which others may be missing as well, and for one that is not as published.
    """
    for source in sources:
        for name in source.missing:
            _download(source, name)
        for name, published in source.files.items():
            _check(source.folder / name, published)


def page(address: str) -> Path:
    """Return the folder with a model's files from its page on the hub, ``hf://OWNER/NAME``.

    Of several forms of the weights, one is downloaded. Raises as ``obtain``, and CheckpointError
    for a page without weights.
    """
    hub.check_installed(address)
    from huggingface_hub import HfApi

    listed = Source(address, "", {})
    repository, revision = listed.on_hub
    try:
        found = HfApi().model_info(repository, revision=revision).siblings or []
    except hub.errors() as error:
        here = [path.name for path in listed.folder.glob("*")]
        if _weights_in(here):
            return listed.folder
        raise CheckpointError(
            f"{address} cannot be read from the hub ({hub.reason(error)}): download the files of "
            "its page by hand, and give their folder instead"
        ) from error
    names = [one.rfilename for one in found]
    weights = _weights_in(names)
    if not weights:
        raise CheckpointError(
            f"{listed.url('')} has none of {', '.join(WEIGHTS)}: expected a model of one file"
        )
    kept = [*(name for name in names if name in DESCRIPTIONS), *weights]  # the weights last
    obtain([Source(address, "", dict.fromkeys(kept, ""))])
    return listed.folder


def _weights_in(names: Sequence[str]) -> list[str]:
    """Return the preferred file of weights; none if there is none."""
    archives = [name for name in names if name.endswith(".pth.tar") and "/" not in name]
    return [*archives, *(name for name in WEIGHTS if name in names)][:1]


def _download(source: Source, name: str) -> None:
    source.folder.mkdir(parents=True, exist_ok=True)
    try:
        if source.address.startswith(_HUB):
            _download_from_hub(source, name)
        else:
            _download_from(source, name)
    except hub.errors() as error:
        raise CheckpointError(f"{source.url(name)}: {hub.reason(error)}") from error


def _download_from(source: Source, name: str) -> None:
    from torch.hub import download_url_to_file

    try:
        download_url_to_file(source.url(name), str(source.folder / name), source.files[name])
    except (URLError, RuntimeError) as error:  # no network; another digest
        raise OSError(str(getattr(error, "reason", error))) from error


def _download_from_hub(source: Source, name: str) -> None:
    """Download a file beside its place, and move it there if it is as the hub states."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    repository, revision = source.on_hub
    stated = get_hf_file_metadata(hf_hub_url(repository, name, revision=revision)).etag or ""
    partial = source.folder / ".partial" / name
    hub.download(repository, [name], revision=revision, local_dir=partial.parent)
    if not partial.is_file():
        raise FileNotFoundError("there is no such file on the hub")
    if len(stated) == checkpoint.DIGITS:  # a large file; others have the digest of Git
        _check(partial, stated)
    partial.replace(source.folder / name)


def _check(path: Path, published: str) -> None:
    if published and checkpoint.sha256(path) != published:
        raise CheckpointError(
            f"{path} is not as published (SHA-256 {published}): delete it and run the command again"
        )

"""Published weights: their addresses, and this machine's copies of them.

A copy that a user has put into its place by hand is used as a download is.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from samclip_core import guarded
from samclip_core.errors import CheckpointError
from samclip_core.families.published import HUB, Source
from samclip_core.io import checkpoint, hub
from samclip_core.io.files import replacing

NOTHING_LEFT = 416
"""HTTP status of a download that begins at the end of the file."""
_COMMIT = re.compile("[0-9a-f]{40}")
WEIGHTS = (
    "open_clip_model.safetensors",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
)
"""Weights on a model's page, the preferred form first."""
DESCRIPTIONS = (
    *("open_clip_config.json", "config.json"),
    *("preprocessor_config.json", "processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model"),
)
"""Files that describe a model and its tokenizer."""


def obtain(source: Source, archive: bool = False) -> Source:
    """Download the files that are missing; return the source with its commit and all digests.

    Shows progress on standard error. The copies of a page on the hub stay those of its commit at
    the first download, and are compared with their digests of that time. A source without names of
    files is a model's page: see ``page``. Raises CheckpointError for a file that cannot be
    downloaded, and for one that is not as published.
    """
    record = _record(source)
    if source.address.startswith(HUB):
        source = _on_record(source, archive)
    for name in source.missing:
        _download(source, name)
    files = {
        name: _checked(source.folder / name, published) for name, published in source.files.items()
    }
    known = _known(record)
    if known and known["address"] == source.address:  # not of files that were placed by hand
        _write(record, known | {"files": known["files"] | files})
    return replace(source, files=files)


def page(address: str, archive: bool = False) -> Source:
    """Return a model's files of its page on the hub, ``hf://OWNER/NAME``, and their licence.

    Of several forms of the weights, one is downloaded: with ``archive`` a .pth.tar, as of RADIO, if
    there is one. Raises as ``obtain``, and CheckpointError for a page without weights.
    """
    return obtain(Source(address, "", {}), archive)


def about(source: Source, name: str) -> str:
    """Return what is known of a file: its address, size, digest, and place on this machine."""
    known = (_known(_record(source)) or {"files": {}})["files"].get(name)
    size = "small" if name in DESCRIPTIONS else f"about {source.megabytes:,} MB"
    digest = source.files[name] or known or "as its page states it"
    return f"{source.url(name)}\n    {size}, SHA-256 {digest}\n    to {source.folder / name}"


def lineage(made_of: Mapping[str, Any], published: Sequence[Source]) -> dict[str, Any]:
    """Return the lineage of a conversion: the files, and where those of ``published`` are from."""
    found: dict[str, Any] = {"made_by": "samclip convert", "sources": dict(made_of)}
    if published:
        found["published"] = [{"address": o.address, "licence": o.licence} for o in published]
    return found


def _on_record(source: Source, archive: bool) -> Source:
    """Return a source of the hub at the commit that this machine knows; ask the hub once."""
    record, by_hand = _record(source), source.files and not source.missing
    known = recorded = _known(record)
    if known is None:
        if by_hand:
            return source
        known = _ask(source)
    names = source.files or dict.fromkeys(_needed(source, known["files"], archive), "")
    if recorded is None:
        _write(record, known)
    files = {name: published or known["files"].get(name, "") for name, published in names.items()}
    found = Source(known["address"], source.licence or known["licence"], files)
    return source if by_hand and found.missing else found


def _record(source: Source) -> Path:
    """Return the file with what the hub stated about a page when it was first read."""
    return source.folder.with_name(f".{source.folder.name}.json")


def _known(record: Path) -> dict[str, Any] | None:
    """Return what a record says; None if there is none, or a damaged one."""
    try:
        known = guarded.read_json(record)
        commit = known["address"].startswith(HUB) and known["address"].rpartition("@")[2]
        texts = [known["licence"], *known["files"].values()]
    except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError):
        return None
    valid = _COMMIT.fullmatch(commit or "") and all(isinstance(one, str) for one in texts)
    return known if valid else None


def _write(record: Path, known: Mapping[str, Any]) -> None:
    record.parent.mkdir(parents=True, exist_ok=True)
    with replacing(record) as partial:
        partial.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")


def _ask(source: Source) -> dict[str, Any]:
    """Return a page's address at its commit, its licence, and the names of its files."""
    from huggingface_hub import HfApi

    repository, revision = source.on_hub
    try:
        found = HfApi().model_info(repository, revision=revision)
        about = found.card_data.to_dict() if found.card_data else {}
    except hub.errors() as error:
        remedy = ": download the files of its page by hand, and give their folder instead"
        raise CheckpointError(
            f"{source.address} cannot be read from the hub ({hub.reason(error)})"
            + ("" if source.files else remedy)
        ) from error
    except (KeyError, TypeError, AttributeError) as error:
        raise _strange(source) from error
    names = [one.rfilename for one in found.siblings or []]
    if not _COMMIT.fullmatch(str(found.sha)) or not all(isinstance(one, str) for one in names):
        raise _strange(source)
    licence = about.get("license_name") or about.get("license") or "not stated"
    return {
        "address": f"{HUB}{repository}@{found.sha}",
        "licence": ", ".join(map(str, licence)) if isinstance(licence, list) else str(licence),
        "files": dict.fromkeys(names, ""),
    }


def _strange(source: Source) -> CheckpointError:
    return CheckpointError(
        f"{source.address}: the reply is not of the hub's form: check HF_ENDPOINT if it is set"
    )


def _needed(source: Source, names: Iterable[str], archive: bool) -> list[str]:
    """Return the files of a page that are converted, the weights last."""
    names = [*names]
    archives = [name for name in names if archive and name.endswith(".pth.tar") and "/" not in name]
    weights = [*archives, *(name for name in WEIGHTS if name in names)][:1]
    if not weights:
        raise CheckpointError(
            f"{source.address} has none of {', '.join(WEIGHTS)}: expected a model of one file"
        )
    return [*(name for name in names if name in DESCRIPTIONS), *weights]


def _download(source: Source, name: str) -> None:
    source.folder.mkdir(parents=True, exist_ok=True)
    try:
        if source.address.startswith(HUB):
            _download_from_hub(source, name)
        else:
            _download_from(source, name)
    except CheckpointError:
        (source.folder / ".partial" / name).unlink(missing_ok=True)
        raise
    except hub.errors() as error:
        raise CheckpointError(f"{source.url(name)}: {hub.reason(error)}") from error


def _download_from(source: Source, name: str) -> None:
    """Download a file, from where an earlier download was interrupted."""
    from huggingface_hub.file_download import http_get

    begun, published = source.folder / ".partial" / name, source.files[name]
    begun.parent.mkdir(exist_ok=True)
    limit = hub.bounded(source.url(name), hub.MAX_BYTES)
    get = partial(http_get, source.url(name), _nb_retries=0, tqdm_class=limit)
    if not begun.is_file() or checkpoint.sha256(begun) != published:
        with begun.open("ab") as file:
            try:
                get(file, resume_size=file.tell())
            except hub.errors() as error:
                if getattr(getattr(error, "response", None), "status_code", None) != NOTHING_LEFT:
                    raise
                file.truncate(0)  # it is as long as the file, and another
                get(file)
    _place(source, name, begun, published)


def _download_from_hub(source: Source, name: str) -> None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    repository, revision = source.on_hub
    stated = get_hf_file_metadata(hf_hub_url(repository, name, revision=revision)).etag or ""
    partial = source.folder / ".partial" / name
    hub.download(repository, [name], revision=revision, local_dir=partial.parent)
    if not partial.is_file():
        raise FileNotFoundError("there is no such file on the hub")
    # That of a large file; others have the digest of Git.
    _place(source, name, partial, stated if len(stated) == checkpoint.DIGITS else "")


def _place(source: Source, name: str, partial: Path, published: str) -> None:
    """Move a download to its place. Raises CheckpointError if it is another."""
    if published not in ("", checkpoint.sha256(partial)):
        raise CheckpointError(
            f"{source.url(name)} is not as published (SHA-256 {published}): what arrived is "
            "removed; run the command again, or look for another address"
        )
    partial.replace(source.folder / name)


def _checked(path: Path, published: str) -> str:
    """Return the SHA-256 of a file. Raises CheckpointError if it is not the published one."""
    found = checkpoint.sha256(path)
    if published not in ("", found):
        raise CheckpointError(
            f"{path} is not as published (SHA-256 {published}): delete it and run the command again"
        )
    return found

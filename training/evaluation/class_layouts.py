"""Public sets of classified images in their published layouts, with the names of their classes."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from samclip_core.io.image import SUFFIXES
from training.evaluation.layouts import existing, read_json

WNID = re.compile(r"n\d{8}")
V2_FOLDERS = [str(index) for index in range(1000)]
OWN_NAMES = ("classes.json", "classes.txt")
PUBLISHED_NAMES = ("imagenet_class_index.json", "LOC_synset_mapping.txt", "synset_words.txt")


class Classified(NamedTuple):
    """Images, each with the index of its class in ``names``."""

    pictures: list[tuple[Path, int]]
    names: list[str]


def class_folders(folder: Path) -> Classified:
    """Read a set with one folder per class, in their order: ImageNet, ImageNet-v2 or custom.

    Names come from the user's ``OWN_NAMES``, in the folder or its parent. Without them, ImageNet's
    folders (WordNet ids, or v2's 0 to 999) get the names that CLIP is evaluated with, other WordNet
    ids those in ``PUBLISHED_NAMES``, and other folders are named after themselves. A file of names
    is JSON ``{folder: name}`` or ``{index: [folder, name]}``, or text lines ``folder name, more
    names``. Hidden folders are no classes. Raises FileNotFoundError if the folder is empty or
    WordNet ids have no names, and ValueError if one folder has none, or is named unlike the others.
    """
    keys = [child.name for child in folder.iterdir() if child.is_dir() and child.name[0] != "."]
    keys.sort(key=lambda key: (int(key), key) if key.isdecimal() else (0, key))
    if not keys:
        raise FileNotFoundError(f"{folder} has no subfolders: expected one per class")
    names = _folder_names(folder, keys)
    pictures = [
        (path, index)
        for index, key in enumerate(keys)
        for path in sorted((folder / key).rglob("*"))
        if path.suffix.lower() in SUFFIXES
    ]
    return Classified(pictures, names)


def _folder_names(folder: Path, keys: list[str]) -> list[str]:
    own = _names_in(folder, keys, OWN_NAMES)
    if own:
        return own
    wnids = {key for key in keys if WNID.fullmatch(key)}
    known = wnids or set(V2_FOLDERS).intersection(keys)
    others = [key for key in keys if key not in known]
    if others and (wnids or len(known) == len(V2_FOLDERS)):
        raise ValueError(
            f"{folder} has {len(known)} folders named like {min(known)!r}, and {others[0]!r}: "
            f"expected one folder per class. Remove the other ones, or name every class in "
            f"{OWN_NAMES[0]}"
        )
    if keys == V2_FOLDERS:
        return list(_imagenet_names().values())
    if not wnids:
        return [_spaced(key) for key in keys]
    curated = _imagenet_names()
    if all(key in curated for key in keys):
        return [curated[key] for key in keys]
    published = _names_in(folder, keys, PUBLISHED_NAMES)
    if published:
        return published
    raise FileNotFoundError(
        f"no names for the WordNet ids in {folder}: put one of "
        f"{', '.join((*OWN_NAMES, *PUBLISHED_NAMES))} there"
    )


def _imagenet_names() -> dict[str, str]:
    """Return ImageNet's 1,000 names that CLIP is evaluated with, by WordNet id, in order."""
    from open_clip import IMAGENET_CLASSNAMES  # takes seconds to import
    from timm.data import ImageNetInfo

    return dict(zip(ImageNetInfo().label_names(), IMAGENET_CLASSNAMES, strict=True))


def _names_in(folder: Path, keys: list[str], files: Sequence[str]) -> list[str] | None:
    """Return the names of the folders from the first file that exists, or None."""
    for path in (place / name for place in (folder, folder.parent) for name in files):
        if path.exists():
            table = _name_table(path)
            missing = [key for key in keys if key not in table]
            if missing:
                raise ValueError(f"{path} has no name for the folder {missing[0]}")
            return [table[key] for key in keys]
    return None


def _spaced(name: str) -> str:
    return re.sub("[-_/]", " ", name)


def _name_table(path: Path) -> dict[str, str]:
    table = {}
    if path.suffix == ".txt":
        for line in path.read_text().splitlines():
            key, _, names = line.strip().partition(" ")
            table[key] = names.split(",")[0].strip()
        return table
    for key, value in read_json(path).items():
        name = value if isinstance(value, str) else value[1]
        table[key] = name.replace("_", " ")
        if not isinstance(value, str):
            table[value[0]] = table[key]
    return table


def read_places365(root: Path) -> Classified:
    """Read Places365's validation set: ``val_256/`` with its lists, or ``val/`` by class."""
    if not (root / "val_256").is_dir():
        return class_folders(root / "val" if (root / "val").is_dir() else root)
    lists = [root, root / "filelist_places365-standard"]
    categories = existing([f / "categories_places365.txt" for f in lists], "list of classes")
    listed = existing([f / "places365_val.txt" for f in lists], "list of photographs")
    names = [_spaced(line.split()[0][3:]) for line in categories.read_text().splitlines()]
    rows = [line.split() for line in listed.read_text().splitlines()]
    return Classified([(root / "val_256" / file, int(index)) for file, index in rows], names)

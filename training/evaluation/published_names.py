"""The class names of public sets, as their files have them."""

import re
from pathlib import Path
from typing import Any

from samclip_core import guarded

V2_FOLDERS = [str(index) for index in range(1000)]
OWN_NAMES = "classes.json"
_MOST_BYTES, _MOST_VALUES = 2**30, 2**27
"""Of a file of annotations: above those of the outlines of COCO's training photographs."""


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises OSError, or ValueError that names the file."""
    try:
        return guarded.read_json(path, _MOST_BYTES, _MOST_VALUES)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def lines(path: Path) -> list[str]:
    lines = guarded.read(path).decode(errors="replace").splitlines()
    return [line for line in lines if line.strip()]


def in_order(path: Path, names: dict[int, str], first: int) -> dict[int, str]:
    """Return names by their numbers. Raises ValueError if they are not counted from ``first``."""
    if sorted(names) != list(range(first, first + len(names))) or not names:
        raise ValueError(
            f"{path} numbers its classes {sorted(names)[:3]} and so on: expected each number from "
            f"{first} on once"
        )
    return dict(sorted(names.items()))


def given_names(names: tuple[str, ...], root: Path) -> dict[int, str]:
    """Return classes that the set has no file of, numbered from 1 on."""
    return dict(enumerate(names, 1))


def object_info(root: Path) -> dict[int, str]:
    """Return ADE20K's classes, whose first words count."""
    path = root / "objectInfo150.txt"
    rows = [line.split("\t") for line in lines(path)[1:]]
    names = {int(fields[0]): fields[-1].split(",")[0].strip() for fields in rows}
    return in_order(path, names, 1)


def colon_names(file: str, spelt: dict[str, str], root: Path) -> dict[int, str]:
    """Return the classes of a file with lines as ``1: aeroplane``; 0 is the background."""
    path = root / file
    rows = [line.partition(":") for line in lines(path)]
    names = {int(value): name.strip() for value, _, name in rows if name.strip() and int(value)}
    return {value: spelt.get(name, name) for value, name in in_order(path, names, 1).items()}


def stuff_names(root: Path) -> dict[int, str]:
    """Return COCO-Stuff's classes by the values of its maps: category ids less one."""
    names = categories(root / "annotations/instances_val2017.json")
    stuff = categories(root / "annotations/stuff_val2017.json")
    names |= {category: name for category, name in stuff.items() if name != "other"}
    return {category - 1: name for category, name in names.items()}


def categories(path: Path) -> dict[int, str]:
    return {c["id"]: c["name"] for c in read_json(path)["categories"]}


def folder_names(folder: Path, keys: list[str]) -> list[str]:
    for path in (folder / OWN_NAMES, folder.parent / OWN_NAMES):
        if path.exists():
            table = read_json(path)
            if missing := [key for key in keys if key not in table]:
                raise ValueError(f"{path} has no name for the folder {missing[0]}")
            return [table[key].replace("_", " ") for key in keys]
    wnids = {key for key in keys if re.fullmatch(r"n\d{8}", key)}
    known = wnids or set(V2_FOLDERS).intersection(keys)
    others = [key for key in keys if key not in known]
    if others and (wnids or len(known) == len(V2_FOLDERS)):
        raise ValueError(
            f"{folder} has {len(known)} folders named like {min(known)!r}, and {others[0]!r}: "
            f"expected one folder per class. Remove the other ones, or name every class in "
            f"{OWN_NAMES}"
        )
    if not wnids and keys != V2_FOLDERS:
        return [spaced(key) for key in keys]
    curated = _imagenet_names()
    if keys == V2_FOLDERS:
        return list(curated.values())
    if not wnids <= curated.keys():
        raise FileNotFoundError(f"no names for the WordNet ids in {folder}: put {OWN_NAMES} there")
    return [curated[key] for key in keys]


def _imagenet_names() -> dict[str, str]:
    """Return ImageNet's 1,000 names that CLIP is evaluated with, by WordNet id, in order."""
    from open_clip import IMAGENET_CLASSNAMES  # takes seconds to import
    from timm.data import ImageNetInfo

    return dict(zip(ImageNetInfo().label_names(), IMAGENET_CLASSNAMES, strict=True))


def spaced(name: str) -> str:
    return re.sub("[-_/]", " ", name)

"""Make docs/gallery.md: what every head answers on photographs that packages ship, good or bad.

Also makes the pictures of docs/tasks.md that show several photographs.

Run it from the repository's root: ``python -m examples.gallery``. It starts a service of its own.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from samclip import Client, drawing
from samclip.demo import LABELS, SCENES, SEARCHES, photograph, service
from samclip.images import read_pixels
from samclip.photo import Photo
from samclip.photo_file import draw_answer
from samclip.types import Box, Point

FOLDER = Path(__file__).parents[1] / "docs"
WIDTH = 480


@dataclass(frozen=True)
class Entry:
    """One picture: the answer to ``code`` about a scene, and what a person sees in it.

    The points and the box are drawn; a remark about a failure begins with "Fails".
    """

    name: str
    scene: str
    code: str
    remark: str
    points: Sequence[Point] = ()
    boxes: Sequence[Box] = ()


FLOWER = (165, 80, 450, 365)
HELMET, BADGE, WHEEL = (278, 340, 511, 511), (130, 345, 212, 442), (490, 270, 690, 455)
ENTRIES = (
    Entry(
        "click-cat",
        "cat",
        "photo.segment([(200, 60)])",
        "the cat from one click, up to its ears and its blurred body.",
        points=[(200, 60)],
    ),
    Entry(
        "click-helmet",
        "astronaut",
        "photo.segment([(400, 440)])",
        "the helmet but for its right rim.",
        points=[(400, 440)],
    ),
    Entry(
        "click-rocket",
        "rocket",
        "photo.segment([(321, 250)])",
        "the rocket from one click.",
        points=[(321, 250)],
    ),
    Entry(
        "click-cup",
        "coffee",
        "photo.segment([(300, 120)])",
        "Fails: the opening of the cup instead of the cup.",
        points=[(300, 120)],
    ),
    Entry(
        "box-helmet",
        "astronaut",
        f"photo.segment(box={HELMET})",
        "the whole helmet: a box says which of several things is meant.",
        boxes=[HELMET],
    ),
    Entry(
        "box-motorcycle",
        "motorcycle",
        "photo.segment(box=(120, 85, 685, 455))",
        "most of the motorcycle, wheels and handlebar included; the tank is left out.",
        boxes=[(120, 85, 685, 455)],
    ),
    Entry(
        "find-flower",
        "flower",
        'photo.segment(text=["flower", "car"])',
        "the flower, but not the other one at the lower edge. The car, which is not there, is "
        "refused.",
    ),
    Entry(
        "find-cat",
        "cat",
        'photo.segment(text=["cat", "unicorn"])',
        "the cat, outlined roughly. The unicorn is refused.",
    ),
    Entry(
        "find-cup",
        "coffee",
        'photo.segment(text=["cup", "spoon", "laptop"])',
        "Fails: the upper half of the cup and two parts of the saucer as three cups, and the "
        "table as spoons. The laptop is refused.",
    ),
    Entry(
        "find-rocket",
        "rocket",
        'photo.segment(text=["rocket", "dog"])',
        "Fails: the sky instead of the rocket. The dog is refused.",
    ),
    Entry(
        "like-flower",
        "flower",
        f"photo.segment(like=photo.segment(box={FLOWER}))",
        "the flower, but not the one that the edge cuts off.",
        boxes=[FLOWER],
    ),
    Entry(
        "like-badge",
        "astronaut",
        f"photo.segment(like=photo.segment(box={BADGE}))",
        "Fails: the astronaut and the helmet instead of the badge.",
        boxes=[BADGE],
    ),
    Entry(
        "like-wheel",
        "motorcycle",
        f"photo.segment(like=photo.segment(box={WHEEL}))",
        "Fails: the motorcycle instead of its two wheels.",
        boxes=[WHEEL],
    ),
    Entry(
        "map-astronaut",
        "astronaut",
        'photo.semantic(["person", "flag", "space shuttle", "wall"])',
        "with one head, the person takes wall beside her head, half of the flag, and the table.",
    ),
    Entry(
        "map-astronaut-refined",
        "astronaut",
        'photo.semantic(["person", "flag", "space shuttle", "wall"], refine=True)',
        "with both heads, person, wall and shuttle are where a person sees them. The visor is "
        "called a flag, and most of the flag a person.",
    ),
    Entry(
        "map-temple",
        "temple",
        'photo.semantic(["temple", "sky", "trees", "lake"], refine=True)',
        "temple, sky and trees; some of the haze is called a lake.",
    ),
    Entry(
        "map-motorcycle",
        "motorcycle",
        'photo.semantic(["motorcycle", "wooden bench", "shelf", "floor"], refine=True)',
        "Fails: the floor is called a motorcycle.",
    ),
    Entry(
        "map-rocket",
        "rocket",
        'photo.semantic(["rocket", "sky", "tower", "floodlight"], refine=True)',
        "Fails: most of the sky is called a tower or a rocket.",
    ),
    Entry(
        "map-flower",
        "flower",
        'photo.semantic(["flower", "leaves"], refine=True)',
        "Fails: most of the flower is called leaves, and the leaves a flower.",
    ),
    Entry(
        "explain-cat",
        "cat",
        'photo.explain("cat")',
        "where the model sees a cat: all over it, and little beside it.",
    ),
    Entry(
        "explain-shuttle",
        "astronaut",
        'photo.explain("space shuttle")',
        "the shuttle, and some of the wall around it.",
    ),
    Entry(
        "everything-coffee",
        "coffee",
        "photo.everything().wholes",
        "Fails: the cup, its saucer and the table come in pieces.",
    ),
    Entry(
        "everything-temple",
        "temple",
        'photo.everything(vocabulary="coco").wholes',
        "the temple, the sky and the haze, each in one piece; the temple takes a tree along.",
    ),
    Entry(
        "classify-part",
        "astronaut",
        f'photo.classify_areas(["a helmet", "a flag", "an astronaut"], boxes=[{HELMET}])',
        "the part in the box is a helmet.",
        boxes=[HELMET],
    ),
)
INTRODUCTION = """# Gallery

Answers of the bundled checkpoint, as they are; no answer was left out because it is wrong. The
photographs come with scikit-image and scikit-learn. `python -m examples.gallery` makes this page
again.
"""


def main() -> None:
    """Ask the service, write the pictures and the page."""
    argparse.ArgumentParser("python -m examples.gallery", description=__doc__).parse_args()
    files = {scene.name: photograph(*scene.file) for scene in SCENES}
    (FOLDER / "gallery").mkdir(exist_ok=True)
    with service() as address, Client(address, timeout=600) as client:
        pictures = {e.name: draw(e, client.image(files[e.scene])) for e in ENTRIES}
        for name, sheet in SHEETS.items():
            pictures[name] = sheet(client, files)
    for name, picture in pictures.items():
        picture.save(FOLDER / f"gallery/{name}.jpg", quality=82)
    (FOLDER / "gallery.md").write_text(page())


def draw(entry: Entry, photo: Photo) -> Image.Image:
    """Run the entry's code, and draw its points, boxes and answer."""
    answer: Any = eval(entry.code, {"photo": photo})
    match answer:
        case [list() as scores]:  # of one box
            answer = scores
    picture = draw_answer(answer, read_pixels(photo.encoded))
    picture = drawing.draw_prompts(picture, entry.points, entry.boxes)
    picture.thumbnail((WIDTH, 2 * WIDTH))
    return picture


def sort_photographs(client: Client, files: Mapping[str, Path]) -> Image.Image:
    """Draw each photograph under its best label."""
    best = [(client.image(path).classify(LABELS)[0], path) for path in files.values()]
    return _sheet([(f"{one.label} {one.score:.0%}", path) for one, path in best])


def search_photographs(client: Client, files: Mapping[str, Path]) -> Image.Image:
    """Draw the best hits of a search among the photographs."""
    client.index("gallery", files)
    hits = client.search("gallery", text=SEARCHES[1], top_k=4)
    return _sheet([(f"{hit.score:.2f}", files[hit.id]) for hit in hits])


def _sheet(titled: Sequence[tuple[str, Path]]) -> Image.Image:
    size = (WIDTH // 2, WIDTH // 3)
    small = [(title, ImageOps.fit(Image.open(path).convert("RGB"), size)) for title, path in titled]
    pictures = [drawing.with_title(picture, title) for title, picture in small]
    return drawing.contact_sheet(pictures, columns=(len(titled) + 1) // 2, width=WIDTH // 2)


SHEETS = {"sort-photographs": sort_photographs, "search-photographs": search_photographs}
"""Pictures of docs/tasks.md, which ask about several photographs."""


def page() -> str:
    """Return the page, failures last."""
    parts = [INTRODUCTION]
    for title, fails in (("What works", False), ("What does not", True)):
        parts.append(f"## {title}\n")
        for entry in ENTRIES:
            if entry.remark.startswith("Fails") is fails:
                remark = entry.remark.removeprefix("Fails: ")
                picture = f"![{remark}](gallery/{entry.name}.jpg)"
                parts.append(f"`{entry.code}`: {remark}\n\n{picture}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    main()

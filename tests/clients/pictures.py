"""Draw the pictures of docs/integrations: what the code of each page answers, run as it stands.

Run it from the repository's root after `make clients`: ``python -m tests.clients.pictures``. It
starts a service of its own. The photographs come with scikit-image and scikit-learn.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from samclip import Mask, Masks, drawing
from samclip.demo import SCENES, photograph
from samclip.images import read_pixels

from tests import documents, hub_server
from tests.checkout import ROOT, sources
from tests.clients.conftest import PYTHON
from tests.e2e.conftest import Service, start

FOLDER = ROOT / "docs/integrations"
NAMES = ("astronaut", "cat", "coffee", "rocket", "temple")
CELL = 110
INK, PAPER = "#222222", "#ffffff"


def answer(page: str, block: int, value: str, service: Service, photos: Path) -> Any:
    """Run a block of a page among the photographs; return ``value``, of Python, at its end."""
    code = documents.runnable(FOLDER / f"{page}.md")[block][1]
    code = code.replace("127.0.0.1:9000", service.address)
    code = code.replace("127.0.0.1:8000", service.url.removeprefix("http://"))
    code += f"\nimport json\nprint(json.dumps({value}))"
    python = PYTHON if page in ("openai", "open-inference") else sys.executable
    path = os.pathsep.join((str(Path(python).parent), os.environ["PATH"]))
    environment = {**os.environ, "PATH": path, "PYTHONPATH": sources()}
    done = subprocess.run(
        [python, "-c", code], cwd=photos, env=environment, stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def openai(service: Service, photos: Path) -> Image.Image:
    """Draw photographs × sentences, with a colour and a number for each similarity."""
    texts, rows = answer("openai", 0, "[texts, similarity.tolist()]", service, photos)
    low, high = np.min(rows), np.max(rows)
    picture = text_sheet([], CELL * (1 + len(texts)), 30 + CELL * len(rows))
    draw = ImageDraw.Draw(picture)
    for column, text in enumerate(texts, 1):
        draw.text((column * CELL + 4, 8), text, INK, ImageFont.load_default(14))
    for row, (path, values) in enumerate(zip(sorted(photos.iterdir()), rows, strict=True)):
        top = 30 + row * CELL
        picture.paste(square(path), (0, top))
        for column, value in enumerate(values, 1):
            left, level = column * CELL, round(255 * (value - low) / (high - low))
            fill = tuple(drawing.HEAT_256_3[level].tolist())
            draw.rectangle((left, top, left + CELL - 3, top + CELL - 3), fill)
            ink = "white" if level < 150 else "black"
            middle = (left + CELL / 2, top + CELL / 2)
            draw.text(middle, f"{value:.2f}", ink, ImageFont.load_default(18), "mm")
    return picture


def open_inference(service: Service, photos: Path) -> Image.Image:
    """Draw the mask of the page's click."""
    value = "[click, *(reply.as_numpy(n).tolist() for n in ('mask', 'predicted_iou'))]"
    click, mask, (iou,) = answer("open-inference", 1, value, service, photos)
    mask_HW = np.array(mask, bool)
    found = Mask(mask_HW, (0, 0, 0, 0), int(mask_HW.sum()), iou, 0)
    cat_HW3 = read_pixels((photos / "cat.jpg").read_bytes())
    picture = drawing.draw_prompts(Masks([found]).draw(cat_HW3), [click])
    return drawing.with_title(picture, f"mask.mean() {mask_HW.mean():.2f}, predicted_iou {iou:.2f}")


def mcp(service: Service, photos: Path) -> Image.Image:
    """Write the tools and an answer, and draw its outline and box."""
    tools, found = answer("mcp", 0, "[tools, found]", service, photos)
    best = found["objects"][0]
    cat = Image.open(photos / "cat.jpg")
    ImageDraw.Draw(cat).polygon([*map(tuple, best["outline"])], outline="#00e5ff", width=3)
    cat = drawing.draw_prompts(cat, boxes=[tuple(best["box"])])
    start, *_, end = best["outline"]
    shown = {**best, "outline": [start, "…", end]}
    lines = [f"image_key: {found['image_key'][:16]}…", f"objects: {len(found['objects'])}"]
    lines += ["", "The first object (drawn):", *(f"{name}: {one}" for name, one in shown.items())]
    sheet = text_sheet(["Five tools:", *(f"{n}: {words}" for n, words in tools.items())], 720, 450)
    sheet.paste(cat, (0, 150))
    sheet.paste(text_sheet(['find("a cat") answers:', *lines], 268, 300), (cat.width, 150))
    return sheet


def hugging_face(service: Service, photos: Path) -> Image.Image:
    """Write the files that ``samclip push`` sends to a stand-in for the hub, and their sizes."""
    with hub_server.running() as hub:
        own = {"HF_ENDPOINT": hub.address, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_token"}
        environment = os.environ | own | {"PYTHONPATH": sources(), "NO_PROXY": "127.0.0.1"}
        command = [sys.executable, "-m", "samclip.cli", "push", "edge", "ann/samclip-edge"]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        files = {name: content for name, content in sorted((hub.files or {}).items()) if content}
    about = "".join(file.decode() for name, file in files.items() if name == "README.md")
    lines = [f"commit “{hub.messages[0][:40]}…”", ""]
    lines += [f"{name}\t{len(content):,} bytes" for name, content in files.items()]
    return text_sheet([*lines, "", "README.md begins:", *about.splitlines()[:5]], 700, 570)


def text_sheet(lines: list[str], width: int, height: int) -> Image.Image:
    """Return lines of text on paper; what follows a tab begins in the middle."""
    picture = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(picture)
    for row, line in enumerate(lines):
        for column, part in enumerate(line.split("\t")):
            place = (12 + column * width // 2, 10 + row * 22)
            draw.text(place, part, INK, ImageFont.load_default(14))
    return picture


def square(path: Path) -> Image.Image:
    """Return the middle of a photograph, of a cell's size."""
    photo = Image.fromarray(read_pixels(path.read_bytes()))
    side = min(photo.size)
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    return photo.crop((left, top, left + side, top + side)).resize((CELL - 2, CELL - 2))


def main() -> None:
    """Start a service, and write all pictures."""
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder, "photos")
        photos.mkdir()
        for scene in SCENES:
            if scene.name in NAMES:
                photo = Image.open(photograph(*scene.file)).convert("RGB")
                photo.save(photos / f"{scene.name}.jpg", quality=92)
        service = start(Path(folder), "edge")
        try:
            for draw in (openai, open_inference, mcp, hugging_face):
                picture = draw(service, photos)
                kind = "png" if draw is hugging_face else "jpg"
                name = f"{draw.__name__.replace('_', '-')}.{kind}"
                picture.save(FOLDER / name, quality=85, optimize=True)
        finally:
            service.stop()


if __name__ == "__main__":
    main()

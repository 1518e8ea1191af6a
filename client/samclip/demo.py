"""Run sample photographs through every head and draw the results under out/.

The demo uses the service at --server or, if none answers, starts one on free ports and stops it.
"""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from samclip import drawing
from samclip.cli.answers import shown
from samclip.cli.formats import Row, table
from samclip.cli.service import add_service, channel
from samclip.cli.usage import Parser, UsageError
from samclip.client import Client
from samclip.errors import ServiceError, Unavailable, plain
from samclip.images import read_pixels
from samclip.photo import Photo
from samclip.types import Box, Mask, Point

COLLECTION = "samclip-demo"
TIMEOUT_SECONDS = 600.0  # a start takes minutes on a busy machine
PROBE_SECONDS = 10.0
LOG_LINES = 10


@dataclass(frozen=True)
class Scene:
    """A photograph, its prompts in pixels, its labels, and what ``edge`` gets wrong in its map."""

    name: str
    file: tuple[str, str]  # package, path inside it
    click: Point
    box: Box
    labels: tuple[str, ...]
    wrong: str = ""


SCENES = (
    Scene(
        "astronaut",
        ("skimage", "data/astronaut.png"),
        (130, 330),
        (278, 340, 511, 511),
        ("person", "flag", "space shuttle", "wall"),
        "the visor: flag",
    ),
    Scene(
        "coffee",
        ("skimage", "data/coffee.png"),
        (365, 285),
        (170, 15, 415, 250),
        ("cup of coffee", "wooden table"),
    ),
    Scene(
        "cat",
        ("skimage", "data/chelsea.png"),
        (200, 60),
        (15, 0, 385, 299),
        ("cat", "blanket"),
    ),
    Scene(
        "rocket",
        ("skimage", "data/rocket.jpg"),
        (321, 250),
        (305, 130, 338, 408),
        ("rocket", "sky", "tower", "floodlight"),
        "most of the sky: rocket, tower",
    ),
    Scene(
        "motorcycle",
        ("skimage", "data/motorcycle_left.png"),
        (410, 225),
        (120, 85, 685, 455),
        ("motorcycle", "wooden bench", "shelf", "floor"),
        "the floor: motorcycle",
    ),
    Scene(
        "temple",
        ("sklearn", "datasets/images/china.jpg"),
        (230, 260),
        (60, 25, 375, 400),
        ("temple", "sky", "trees", "lake"),
        "haze: lake",
    ),
    Scene(
        "flower",
        ("sklearn", "datasets/images/flower.jpg"),
        (310, 220),
        (165, 80, 450, 365),
        ("flower", "leaves"),
        "flower and leaves, swapped",
    ),
)
LABELS = (
    *("a person", "a cup of coffee", "a cat", "a rocket", "a motorcycle", "a temple"),
    *("a flower", "a dog", "a bicycle", "a bowl of soup", "a lighthouse", "an airplane"),
)
SEARCHES = (
    *("a pet", "something to drink", "a red vehicle with two wheels"),
    *("travel to space", "a building in China", "a blooming plant"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo and return its exit status."""
    args = parser().parse_args(argv)
    try:
        given = channel(args)
        files = [(scene, photograph(*scene.file)) for scene in SCENES]
        args.out.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            if not _answers(given, args.api_key):
                print(f"no service answers at {given['address']}: starting one", file=sys.stderr)
                given |= {"address": stack.enter_context(service()), "tls": False}
            client = stack.enter_context(Client(api_key=args.api_key, **given))
            _show(client, files, args.out)
    except UsageError:
        raise
    except (ServiceError, OSError, ValueError, RuntimeError) as error:
        print(f"samclip demo: {plain(str(error), keep=chr(10))}", file=sys.stderr)
        return 1
    return 0


def parser() -> Parser:
    """Return the command's parser."""
    made = Parser(
        prog="samclip demo",
        description="Run sample photographs through every head and draw the results. The "
        "service is that at --server or, if none answers, one that is started on free ports.",
        examples=["samclip demo", "samclip demo --server gpu-1:9000 --out demo/"],
    )
    help = "of the pictures (out)"
    made.add_argument("--out", type=Path, default=Path("out"), metavar="FOLDER", help=help)
    add_service(made, timeout=TIMEOUT_SECONDS)
    return made


def photograph(package: str, path: str) -> Path:
    """Return the path of a file in an installed package, without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(
            "the photographs come with scikit-image and scikit-learn, which are not installed: "
            "in a clone, run pip install -e '.[demo]'"
        )
    return Path(spec.submodule_search_locations[0]) / path


def _answers(given: dict[str, Any], api_key: str | None) -> bool:
    try:
        with Client(api_key=api_key, **{**given, "timeout": PROBE_SECONDS}) as client:
            client.describe()
    except Unavailable:
        return False
    return True


@contextmanager
def service() -> Iterator[str]:
    """Run a service on free ports; yield its gRPC address. Raises RuntimeError."""
    http, grpc = _free_port(), _free_port()
    with tempfile.TemporaryDirectory(prefix="samclip-demo-") as folder:
        settings = {"HTTP_PORT": http, "GRPC_PORT": grpc, "INDEX_DIR": f"{folder}/index"}
        settings |= {"REQUEST_TIMEOUT_S": TIMEOUT_SECONDS}
        environment = os.environ | {f"SAMCLIP_{key}": str(value) for key, value in settings.items()}
        log = Path(folder, "log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "samclip.cli", "serve"],
                env=environment,
                stdout=output,
                stderr=output,
            )
        try:
            _wait_until_ready(process, f"http://127.0.0.1:{http}/readyz", log)
            yield f"127.0.0.1:{grpc}"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.2)
    last = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])
    raise RuntimeError(f"the service did not start. The end of its log:\n{last}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _show(client: Client, files: Sequence[tuple[Scene, Path]], out: Path) -> None:
    rows: list[Row] = []
    pictures: list[Image.Image] = []
    with shown("photographs", len(files)) as advance:
        for scene, path in files:
            row, drawn = _ask(client.image(path), scene)
            rows.append(row)
            for kind, picture in drawn.items():
                picture.save(out / f"{scene.name}-{kind}.png", compress_level=1)
            pictures += drawn.values()
            advance(1)
    print(table(rows), end="\n\n")
    hits, found = _search(client, {scene.name: path for scene, path in files})
    print(table(hits), end="\n\n")
    drawing.contact_sheet([*pictures, *found], columns=4, width=480).save(
        out / "demo.png", compress_level=1
    )
    if client.model:
        print(plain(f"answered by {client.model.name} ({client.model.digest[:12]})"))
    print(f"pictures: {out / 'demo.png'} shows all; single pictures are in {out}/")


def _ask(photo: Photo, scene: Scene) -> tuple[Row, dict[str, Image.Image]]:
    """Run every head on one photograph; return its table row and pictures."""
    pixels_HW3 = read_pixels(photo.encoded)
    start = time.perf_counter()
    best = photo.classify(LABELS)[0]
    first = time.perf_counter() - start
    # The best of three: a click is ambiguous.
    clicked = photo.segment([scene.click], multimask=True)[:1]
    cached = time.perf_counter() - start - first
    boxed = photo.segment(boxes=[scene.box])
    semantic = photo.semantic(scene.labels, refine=True)
    everything = photo.everything(scene.labels)
    top_label = f"{best.label} {best.score:.0%}"
    pictures = {
        "click": drawing.draw_prompts(clicked.draw(pixels_HW3, names=False), [scene.click]),
        "box": drawing.draw_prompts(boxed.draw(pixels_HW3, names=False), boxes=[scene.box]),
        "semantic": semantic.draw(pixels_HW3),
        "everything": everything.wholes.draw(pixels_HW3, names=False),
    }
    titles = (
        f"{top_label}; one click, expected IoU {clicked[0].predicted_iou:.2f}",
        f"one box, expected IoU {boxed[0].predicted_iou:.2f}",
        "semantic segmentation",
        f"everything: {len(everything)} masks",
    )
    row = {
        "photograph": scene.name,
        "top label": top_label,
        "click": _share(clicked[0]),
        "box": _share(boxed[0]),
        "regions": ", ".join(
            f"{r.label} {r.area / semantic.label_map.size:.0%}" for r in semantic.regions
        ),
        "masks": len(everything),
        "first ms": round(first * 1000),
        "cached ms": round(cached * 1000),
        "edge gets wrong": scene.wrong,
    }
    titled = zip(pictures.items(), titles, strict=True)
    return row, {kind: drawing.with_title(picture, text) for (kind, picture), text in titled}


def _share(mask: Mask) -> str:
    return f"{mask.area / mask.array.size:.0%}"


def _search(client: Client, paths: dict[str, Path]) -> tuple[list[Row], list[Image.Image]]:
    """Search the photographs in a temporary collection; return table rows and the best hits."""
    client.index(COLLECTION, paths)
    rows, pictures = [], []
    for text in SEARCHES:
        best, second = client.search(COLLECTION, text=text, top_k=2)
        rows.append({"search": text, "best": best.id, "score": best.score, "second": second.id})
        picture = Image.open(paths[best.id]).convert("RGB")
        pictures.append(drawing.with_title(picture, f"“{text}”"))
    client.delete(COLLECTION, all=True)
    return rows, pictures

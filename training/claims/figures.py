"""The paper's figures from the results of other commands: curve, bars and a sheet of photographs.

``--curve`` reads the JSON of ``training.claims.wise_ft`` (figure of appendix D), ``--probes`` the
metrics of ``samclip eval --suite probe`` per checkpoint (table 3 as bars). The sheet compares one
head with two on photographs that ship with scikit-image and scikit-learn, so it may be published.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from matplotlib.figure import Figure

from samclip_core.io.image import decode
from samclip_core.model import SamClip
from training.claims.sheet import draw_labels
from training.claims.wise_ft import Point
from training.claims.wise_ft import draw as draw_curve
from training.evaluation.bars import draw_bars

PHOTOGRAPHS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("skimage", "data/chelsea.png"): ("cat", "blanket", "wall"),
    ("skimage", "data/coffee.png"): ("cup", "spoon", "table", "saucer"),
    ("skimage", "data/rocket.jpg"): ("rocket", "sky", "tower", "smoke", "ground"),
    ("skimage", "data/motorcycle_left.png"): ("motorcycle", "floor", "wall", "shelf"),
    ("sklearn", "datasets/images/china.jpg"): ("temple", "sky", "tree", "pavement", "person"),
    ("sklearn", "datasets/images/flower.jpg"): ("flower", "leaves", "background"),
}
COLUMNS = ("photograph", "one head", "two heads")


def curve(path: Path) -> Figure:
    """Draw the forgetting curve from wise_ft.json."""
    content = json.loads(path.read_text())
    return draw_curve([Point(**point) for point in content["curve"]], Point(**content["merge"]))


def named_metrics(pairs: Sequence[str]) -> dict[str, dict[str, float]]:
    """Read ``NAME=metrics.json`` arguments: figures per name, without what they are of."""
    found = {}
    for pair in pairs:
        name, sign, path = pair.partition("=")
        if not sign:
            raise ValueError(f"{pair!r} has no =: expected NAME=metrics.json")
        content = json.loads(Path(path).read_text())
        found[name] = {key: v for key, v in content.items() if not isinstance(v, str)}
    return found


def sheet(model: SamClip) -> Figure:
    """Draw each packaged photograph with its label maps by one head and by both."""
    figure = Figure(figsize=(11, 3.6 * len(PHOTOGRAPHS)), layout="constrained")
    rows = figure.subplots(len(PHOTOGRAPHS), len(COLUMNS), squeeze=False)
    for axes, ((package, inside), labels) in zip(rows, PHOTOGRAPHS.items(), strict=True):
        image_HW3 = decode(packaged(package, inside).read_bytes(), model.limits)
        features = model.encode(image_HW3)
        axes[0].imshow(image_HW3)
        for cell, refine in zip(axes[1:], (False, True), strict=True):
            answer = model.segment_text(features, labels, refine=refine)
            draw_labels(cell, image_HW3, answer.label_map_HW, list(labels))
        for cell, title in zip(axes, COLUMNS, strict=True):
            cell.set(title=title, xticks=[], yticks=[])
    return figure


def packaged(package: str, inside: str) -> Path:
    """Return the path of a file of an installed package, without importing the package."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"package {package} is missing: run pip install -e '.[dev]'")
    return Path(spec.origin).parent / inside


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the requested figures into a folder."""
    parser = argparse.ArgumentParser(prog="training.claims.figures", description=main.__doc__)
    parser.add_argument("--curve", type=Path, help="wise_ft.json; draws curve.png")
    parser.add_argument(
        "--probes",
        nargs="+",
        default=[],
        metavar="NAME=FILE",
        help="metrics.json files; draws probes.png",
    )
    parser.add_argument("--checkpoint", help="name or directory; draws sheet.png")
    parser.add_argument("--out", type=Path, default=Path("out/claims"))
    args = parser.parse_args(argv)
    try:
        probes = named_metrics(args.probes)
    except ValueError as error:
        parser.error(str(error))
    args.out.mkdir(parents=True, exist_ok=True)
    if args.curve:
        curve(args.curve).savefig(args.out / "curve.png", dpi=110)
    if probes:
        draw_bars(probes, args.out / "probes.png")
    if args.checkpoint:
        sheet(SamClip.load(args.checkpoint, engine="torch")).savefig(
            args.out / "sheet.png", dpi=110
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

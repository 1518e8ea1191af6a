"""``samclip probe``: fits a head to labelled pictures, and judges it by others."""

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors.numpy import save
from samclip import Client, ServiceError
from samclip.cli import answers, service
from samclip.cli.formats import as_json
from samclip.cli.usage import Parser, UsageError
from samclip.errors import plain
from samclip.many_photos import AT_ONCE
from samclip.patience import patiently

from samclip_core.answers.own import name_of
from samclip_core.answers.probe import ABOUT, DENSE, KIND, POOLED, WEIGHTS, Probe
from samclip_core.errors import SamClipError
from samclip_core.io.files import replacing_folder
from services.probe import fit, labelled, report
from services.probe.encode import Encoded, encode
from services.probe.labelled import Picture
from services.probe.report import Judged

CARD, SHEET = "README.md", "mistakes.png"
FILES = {ABOUT, WEIGHTS, CARD, SHEET}


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        failed: int = args.run(args)
    except UsageError:
        raise
    except (SamClipError, ServiceError, OSError, ValueError) as error:
        print(plain(f"samclip probe: {error}"), file=sys.stderr)
        return 1
    return 1 if failed else 0


def parser() -> Parser:
    made = Parser(
        prog="samclip probe",
        description="Teach a head classes of your own from labelled pictures, without writing "
        "code, and measure it. samclip serve --head DIR serves the folder that it makes.",
        examples=[
            "samclip probe fit photos/ --out parts",
            "samclip probe eval parts other-photos/",
        ],
    )
    commands = made.add_subparsers(title="commands", metavar="COMMAND", required=True)
    fitting = commands.add_parser(
        "fit",
        help="fit a head to labelled pictures",
        description="Fit a logistic regression to the embeddings of labelled pictures, and print "
        "its accuracy by cross-validation beside that of the classes' names.",
        examples=[
            "samclip probe fit photos/ --out parts",
            "samclip probe fit labels.csv --out parts --local edge --json",
            "samclip probe fit --collection pets --label species --out species",
        ],
    )
    fitting.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="the folder to write, whose name is that of the head; an earlier probe is replaced",
    )
    fitting.set_defaults(run=_fit)
    judging = commands.add_parser(
        "eval",
        help="measure a head on other labelled pictures",
        description="Measure a head on labelled pictures that it was not fitted to. Of labels that "
        "it does not have, it counts how many are refused.",
        examples=[
            "samclip probe eval parts other-photos/",
            "samclip probe eval parts other.csv --local --json",
        ],
    )
    judging.add_argument("probe", type=Path, metavar="DIR", help="what samclip probe fit wrote")
    judging.set_defaults(run=_eval)
    for one in (fitting, judging):
        _add_source(one)
        one.add_argument("--json", action="store_true", help="print JSON")
        service.add_local(one)
        service.add_service(one, math.inf)
    return made


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", nargs="?", type=Path, metavar="FOLDER", help=labelled.FORMS)
    parser.add_argument(
        "--collection",
        metavar="NAME",
        help="instead of a folder: a collection of the service, whose embeddings are used as they "
        "are; --label names their classes",
    )
    parser.add_argument("--label", metavar="KEY", help="the metadata with the class of an item")


def _check_source(args: argparse.Namespace) -> None:
    """Raise UsageError unless there is one source of pictures."""
    if bool(args.source) == bool(args.collection) or bool(args.collection) != bool(args.label):
        raise UsageError("pass a folder, or --collection NAME with --label KEY and no folder")
    if args.collection and args.local:
        raise UsageError("--collection is one of a service: leave --local out")


def _fit(args: argparse.Namespace) -> int:
    """Fit and write a probe; return the number of pictures that could not be used."""
    _check_source(args)
    name, out = name_of(str(args.out)), args.out.resolve()
    _check_target(out, args.source and args.source.resolve())
    with _connected(args) as client:
        pictures = _pictures(args, client)
        classes = labelled.check(labelled.count(pictures))
        encoded = _encode(args, client, pictures, classes)
    _check_enough(encoded, classes)
    index = {name: number for number, name in enumerate(classes)}
    class_N = np.array([index[part.label] for part in encoded.parts])
    keys = [part.key for part in encoded.parts]
    with answers.shown("fitting", fit.MOST_FITS) as advance:
        fitted = fit.fit(encoded.vectors_ND, class_N, keys, advance)
    left_out = fitted.left_out_N.tolist()
    judged = Judged(encoded.parts, classes, fitted.held_out_NC, fitted.threshold, left_out)
    about = {
        "kind": KIND,
        "model": {"name": encoded.model.name, "digest": encoded.model.digest},
        "outputs": DENSE if pictures[0].boxes else POOLED,
        "classes": classes,
        "threshold": fitted.threshold,
        "strength": fitted.strength,
        "counts": Counter(part.label for part in encoded.parts),
        "figures": judged.figures,
    }
    files = {
        ABOUT: f"{json.dumps(about, indent=2, ensure_ascii=False)}\n".encode(),
        WEIGHTS: save({"weight": fitted.weight_CD, "bias": fitted.bias_C}),
        CARD: report.card(name, judged, encoded.model, fitted.strength).encode(),
    }
    _write(out, files, judged)
    return _print(args, judged, encoded, f"\n{args.out}: samclip serve --head {args.out}")


def _eval(args: argparse.Namespace) -> int:
    """Judge a probe; return the number of pictures that could not be used."""
    _check_source(args)
    probe = Probe(args.probe)
    with _connected(args) as client:
        if client.model:
            probe.check(client.model.digest)
        pictures = _pictures(args, client)
        if bool(pictures[0].boxes) != probe.of_boxes:
            fitted = "boxes: give COCO's JSON" if probe.of_boxes else "whole pictures: give these"
            raise ValueError(f"{args.probe} was fitted to {fitted}")
        encoded = _encode(args, client, pictures, probe.classes)
    probability_NC = probe.probabilities(encoded.vectors_ND)
    return _print(
        args, Judged(encoded.parts, probe.classes, probability_NC, probe.threshold), encoded
    )


@contextmanager
def _connected(args: argparse.Namespace) -> Iterator[Client]:
    """Connect to a service, or --local, and have a reply, which names the checkpoint."""
    with service.connect(args, bulk=True) as client:
        patiently(lambda: client.embed_text(["a picture"]))
        yield client


def _pictures(args: argparse.Namespace, client: Client) -> list[Picture]:
    if args.collection:
        return labelled.of_collection(client, args.collection, args.label)
    return labelled.read(args.source)


def _encode(
    args: argparse.Namespace, client: Client, pictures: Sequence[Picture], classes: Sequence[str]
) -> Encoded:
    return encode(client, pictures, classes, answers.LOCAL_AT_ONCE if args.local else AT_ONCE)


def _check_enough(encoded: Encoded, classes: Sequence[str]) -> None:
    """Raise ValueError unless each class still has enough pictures, of which copies are one."""
    count = Counter(dict.fromkeys(classes, 0))
    count.update(label for _, label in {(part.key, part.label) for part in encoded.parts})
    labelled.check(count)


def _check_target(out: Path, source: Path | None) -> None:
    """Raise ValueError unless the folder may be replaced, and is not among the pictures."""
    if source and out.is_relative_to(source):
        raise ValueError(f"--out {out} is among the labelled pictures: choose another folder")
    if out.exists() and not (out.is_dir() and {path.name for path in out.iterdir()} <= FILES):
        raise ValueError(f"--out {out} is neither empty nor a probe: choose another folder")


def _write(folder: Path, files: dict[str, bytes], judged: Judged) -> None:
    """Replace a folder by one with these files, and the picture of the mistakes if there are any.

    Raises OSError; the folder is then as it was.
    """
    with replacing_folder(folder) as new:
        for name, content in files.items():
            (new / name).write_bytes(content)
        if sheet := judged.sheet():
            sheet.save(new / SHEET)
        Probe(new)  # what cannot be read again is not written


def _print(args: argparse.Namespace, judged: Judged, encoded: Encoded, written: str = "") -> int:
    """Print what was found; return the number of pictures that could not be used."""
    if args.json:
        found = {
            "model": asdict(encoded.model),
            "counts": Counter(part.label for part in encoded.parts),
            "threshold": judged.threshold,
            "figures": judged.figures,
            "confusions": judged.confusions,
            "failed": encoded.errors,
        }
        print(as_json(found, indent=2))
    else:
        print(judged.shown() + written)
    return len(encoded.errors)


if __name__ == "__main__":
    sys.exit(main())

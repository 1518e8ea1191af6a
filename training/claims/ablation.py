"""The ablation of λ, the weight of L_SAM (paper, section 4.1): 1 forgets masks, 100 hurts names."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from samclip_core.model import SamClip
from training import train
from training.evaluation.suite import Options
from training.results.plots import bars, comparison
from training.suites import Axis

WEIGHTS = (1.0, 10.0, 100.0)


def main(argv: Sequence[str] | None = None) -> int:
    """Train a recipe once per λ, measure the merges, and write one table and one chart.

    A run that has ended is not trained again. Options after -- are those of samclip train.
    """
    parser = argparse.ArgumentParser(prog="training.claims.ablation", description=main.__doc__)
    add = parser.add_argument
    add("--weights", type=float, nargs="+", default=WEIGHTS, metavar="λ")
    add("--axes", nargs="+", type=Axis.read, required=True, metavar="SUITE/FIGURE=FOLDER")
    add("--limit", type=int, help="photographs per suite, spread evenly over it")
    add("--out", type=Path, default=Path("runs/ablation"), help="folder of the runs, on a disk")
    add("train", nargs="*", metavar="-- OPTION", help="as in -- --recipe vit-b --sam FILE …")
    args = parser.parse_args(argv)
    figures = {}
    for weight in args.weights:
        run = args.out / f"lambda-{weight:g}"
        chosen = ["--set", f"sam_weight={weight:g}", "--out", str(run)]
        if not (run / "checkpoint").exists() and (code := train.main([*args.train, *chosen])):
            return code
        model = SamClip.load(str(run / "checkpoint"), engine="torch")
        figures[f"λ = {weight:g}"] = {
            f"{axis.suite} {axis.figure}": axis.measure(
                model, Options(root=axis.root, limit=args.limit)
            )
            for axis in args.axes
        }
    text = comparison(figures)
    (args.out / "ablation.md").write_text(text)
    (args.out / "ablation.svg").write_text(bars(figures, "the merge by λ"))
    print(text, end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

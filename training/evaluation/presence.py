"""Fit the three numbers of ``samclip_core.answers.presence``: is a text there at all?

    python -m training.evaluation.presence

Every photograph of coco_multi with outlined things is compared with every name of the set's things.
The logistic regression gives names that are there and names that are not the same weight in all.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from samclip_core.answers.dense import BACKGROUND_WORDS
from samclip_core.answers.presence import PEAK, Evidence, peak
from samclip_core.answers.zero_shot import class_embeddings
from samclip_core.model import SamClip
from samclip_core.types import ImageFeatures
from training.data.annotations import thing_names
from training.evaluation.suite import Options, add_part, own_samples, progress
from training.evaluation.words import SOURCE, truths
from training.inputs import photograph_sets

L2 = 1.0
ROUNDS = 50
QUANTILES = (0.85, 0.9, 0.925, 0.95)


def evidence(model: SamClip, features: ImageFeatures, names: Sequence[str]) -> NDArray[np.float64]:
    """Return the peak of each name's map and the evidence of the image vector, N×2."""
    words = [*names, *BACKGROUND_WORDS]
    vectors_XD = class_embeddings(model.embed_text, words, model.config.templates)
    wanted = dict(zip(names, vectors_XD, strict=False))
    found = Evidence.of(features, wanted, vectors_XD[len(names) :], model.config.logit_scale)
    rows, columns = features.geometry.grid(found.map_Xss.shape[-1])
    inside_ss = np.zeros(found.map_Xss.shape[1:], np.bool_)
    inside_ss[:rows, :columns] = True
    cells = max(1, round(PEAK * rows * columns))
    peak_N = [peak(map_ss, inside_ss, cells) for map_ss in found.map_Xss]
    return np.stack([peak_N, found.pooled_X], axis=1)


def fit(values_N2: NDArray[np.float64], there_N: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return weights and offset of a balanced logistic regression with an L2 penalty."""
    weight_N = np.where(there_N, 0.5 / there_N.sum(), 0.5 / (~there_N).sum()) * len(there_N)
    rows_N3 = np.column_stack([values_N2, np.ones(len(values_N2))])
    penalty_33 = np.diag([L2, L2, 0.0])
    weights_3 = np.zeros(3)
    for _ in range(ROUNDS):  # Newton's method
        p_N = 1 / (1 + np.exp(-rows_N3 @ weights_3))
        slope_3 = rows_N3.T @ (weight_N * (p_N - there_N)) + penalty_33 @ weights_3
        curve_33 = (rows_N3 * (weight_N * p_N * (1 - p_N))[:, None]).T @ rows_N3 + penalty_33
        weights_3 -= np.linalg.solve(curve_33, slope_3)
    return weights_3


def main(argv: Sequence[str] | None = None) -> int:
    """Print the numbers, and how many names are found at a few rates of refusal."""
    parser = argparse.ArgumentParser(prog="training.evaluation.presence", description=main.__doc__)
    parser.add_argument("--checkpoint", default="edge", help="name or directory")
    add_part(parser)
    parser.set_defaults(part="select")
    parser.add_argument("--root", help="folder of the photograph sets (SAMCLIP_DATA)")
    args = parser.parse_args(argv)
    options = Options(root=Path(photograph_sets(parser, "--root", args.root)), part=args.part)
    model = SamClip.load(args.checkpoint)
    names = thing_names(options.root, SOURCE)
    values, there = [], []
    for sample in progress(own_samples(options, SOURCE, usable=truths), "presence"):
        values.append(evidence(model, model.encode(sample.encoded), names))
        present = {instance["category"] for instance in sample.info["instances"]}
        there.append([name in present for name in names])
    values_N2, there_N = np.concatenate(values), np.array(there).reshape(-1)
    weights_3 = fit(values_N2, there_N)
    score_N = 1 / (1 + np.exp(-(values_N2 @ weights_3[:2] + weights_3[2])))
    print("MAP_WEIGHT, POOLED_WEIGHT, OFFSET =", ", ".join(f"{w:.3f}" for w in weights_3))
    for refused in QUANTILES:
        least = np.quantile(score_N[~there_N], refused)
        found = (score_N[there_N] >= least).mean()
        print(f"min_score {least:.3f}: refused {refused:.1%}, found {found:.1%}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

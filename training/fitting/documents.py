"""The figures that the project's documents say of the bundled checkpoint, in one run."""

from samclip_core.model import SamClip
from training.evaluation import words
from training.evaluation.outlines import NamedThings
from training.evaluation.parallel import progress
from training.evaluation.suite import Metrics, Options
from training.fitting.calibrate import Given, measured

SETS = ("coco_multi", "bsds500")
"""The sets that calibrated it: the names of the first, and the regions of both."""


def own_sets(model: SamClip, options: Options) -> Metrics:
    """Return what ``samclip calibrate`` measures, and what is found by words.

    Always on the photographs for reporting, and concepts learn from the others.
    """
    given = Given.of([options.root / name for name in SETS], options.limit)
    calibration, named = model.config.fitted, []
    for sample in progress([*given.choose, *given.training], "examples of concepts"):
        vector_D, features = model.embed_image(sample.encoded), model.encode(sample.encoded)
        named.append(NamedThings.of(model, features, sample, given.names, vector_D))
    return measured(model, given, calibration, named) | words.own_set(model, options)

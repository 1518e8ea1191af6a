"""Measure a network while it trains, by the suites of ``samclip eval``."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from samclip_core.io import checkpoint
from samclip_core.model import SamClip
from samclip_core.nn.network import SamClipNet, build
from samclip_core.nn.text_encoder import TextEncoder
from training.evaluation.suite import Metrics, Options, openai_templates
from training.evaluation.suites import SUITES
from training.loop import Measure
from training.recipes import Recipe, Run
from training.schedule import Measures

FEW = 4
"""Images per set of the trial: enough to find a mistake, in seconds."""


def measures_of(recipe: Recipe) -> list[Measures]:
    """Return the measures of all stages after the SAM teacher's."""
    stages = (recipe.head_probing, recipe.joint, recipe.adaptation)
    return [stage.measures for stage in stages if stage and stage.measures]


def check_measures(recipe: Recipe, data: str) -> None:
    """Raise ValueError or FileNotFoundError if a stage measures what is not known or not there."""
    for measures in measures_of(recipe):
        names = [name for name, _ in measures.suites]
        unknown = [name for name in names if name not in SUITES]
        if unknown or "://" in data:
            raise ValueError(
                f"measures on {data} of {unknown or 'all suites'}: expected a folder on a disk and "
                f"suites among {', '.join(SUITES)}"
            )
        if measures.best.partition("/")[0] not in names:
            raise ValueError(f"best={measures.best!r}: expected a figure of {' or '.join(names)}")
        for name, folder in measures.suites:
            if not (Path(data) / folder).is_dir():
                raise FileNotFoundError(f"no folder {Path(data) / folder} to measure {name} on")


def try_measures(recipe: Recipe, net: SamClipNet, measure: Measure[SamClipNet]) -> None:
    """Measure a few images as every stage will, so that a mistake is found before head probing.

    Raises ValueError if there is no figure to choose by, and the errors of ``measure``.
    """
    for measures in measures_of(recipe):
        measures.check(measure(net, replace(measures, limit=min(FEW, measures.limit))))


def measure(run: Run, text_encoder: TextEncoder, net: SamClipNet, measures: Measures) -> Metrics:
    """Return the figures of the checkpoint that ``net`` is now, named SUITE/FIGURE.

    Our own sets are measured on the third that is for choosing. Raises OSError or ValueError if a
    data set is not as its suite expects.
    """
    model = _model(run, text_encoder, net)
    own = model.config
    metrics: Metrics = {}
    for name, folder in measures.suites:
        suite = SUITES[name]
        model.config = replace(own, templates=openai_templates()) if suite.names else own
        options = Options(root=Path(run.data) / folder, limit=measures.limit, part="select")
        figures = suite.task(model, options)
        metrics |= {f"{name}/{figure}": value for figure, value in figures.items()}
    return metrics


def _model(run: Run, text_encoder: TextEncoder, net: SamClipNet) -> SamClip:
    """Save and load what would be served: without heads that only training needs."""
    served = build(run.config)
    state = net.state_dict()
    served.load_state_dict({key: state[key] for key in served.state_dict()})
    with TemporaryDirectory() as scratch:
        directory = Path(scratch) / "checkpoint"
        checkpoint.save(directory, served.eval(), text_encoder, run.config, {})
        return SamClip.load(directory, str(run.device), "float32", engine="torch")

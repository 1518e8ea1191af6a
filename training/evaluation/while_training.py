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
from training.recipes import Run
from training.schedule import Measures


def measure(run: Run, text_encoder: TextEncoder, net: SamClipNet, measures: Measures) -> Metrics:
    """Return the figures of the checkpoint that ``net`` is now, named SUITE/FIGURE.

    Our own sets are measured on the third that is for choosing. Raises ValueError for an unknown
    suite, and OSError or ValueError if a data set is not as its suite expects.
    """
    unknown = [name for name, _ in measures.suites if name not in SUITES]
    if unknown or "://" in run.data:
        raise ValueError(
            f"measures on {run.data} of {unknown or 'all suites'}: expected a folder on a disk and "
            f"suites among {', '.join(SUITES)}"
        )
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

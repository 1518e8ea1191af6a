"""The training loop of every stage: train, average, validate, report, save, resume."""

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from samclip_core.io.folder import Folder
from training import workers
from training.journal import LOSSES, MEASURES, VALIDATION, Journal
from training.schedule import Schedule, rate_at


@dataclass(frozen=True)
class Portion:
    """A portion of a step's loss, scaled to its share of the global batch, with figures to display.

    Portions are backpropagated one by one, so that only one graph is in memory at a time.
    """

    loss: Tensor
    shown: dict[str, Tensor]


Net = TypeVar("Net", bound=nn.Module)
Given = TypeVar("Given", bound=nn.Module, contravariant=True)


class Objective(Protocol[Given]):
    """A loss that declares the names of all figures that its portions may display.

    A worker without a share of the loss does not display them, so it cannot know them otherwise.
    """

    @property
    def names(self) -> Sequence[str]: ...
    def portions(self, net: Given, batch: Any, /) -> Iterator[Portion]: ...


PROGRESS = "done", "lowest", "without_gain"  # numbers of a stage that its state holds
GRADIENT_NORM = "gradient_norm"  # the figure that every step adds to those of its losses


class Stage(Generic[Net]):
    """A stage of a run: its network, the moving average of its weights, and its resumable state.

    ``folder`` holds ``NAME.state.pt``, from which a run resumes, ``NAME.best.pt``, the best
    averaged weights, and the curves of the ``Journal``.
    """

    def __init__(
        self,
        name: str,
        net: Net,
        optimiser: torch.optim.Optimizer,
        schedule: Schedule,
        folder: str | Path,
        objectives: Sequence[Objective[Net]],
    ) -> None:
        """Take worker 0's weights, and resume from ``folder``; the loss sums up ``objectives``.

        Raises OSError, on all workers alike, if they do not resume at the same step.
        """
        self.name, self.net, self.schedule, self.folder = name, net, schedule, Folder(folder)
        self.objectives = objectives
        self.shown = [name for objective in objectives for name in objective.names]
        self.device = next(net.parameters()).device
        # Processors round differently.
        workers.share(net.state_dict().values())
        self.averaged = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(schedule.average))
        self.optimiser = optimiser
        self.rates = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: rate_at(s, schedule))
        self.lowest = math.inf  # the validation loss, or the negative of the measured figure
        self.without_gain = 0  # judgements since the best one
        self.done = 0
        self._resume()

    def fit(
        self,
        batches: Callable[[range], Iterable[Any]],
        validation: Callable[[], Iterable[Any]] = tuple,
        report: Callable[[dict[str, float]], None] | None = None,
        measure: Callable[[Net], float] | None = None,
    ) -> None:
        """Run the remaining steps, then load the averaged weights into the network.

        ``batches(steps)`` yields this worker's share of each step. A step depends only on its
        number, so an interrupted run resumes with the same result. With ``validation``, the weights
        with the lowest validation loss are used, unless the schedule keeps the last ones; with
        ``measure``, those with the highest figure, and the schedule's patience ends the stage.
        Every worker calls ``report`` and ``measure`` at the same steps.
        """
        end = self.schedule.steps
        steps = range(self.done, self.done if self._ended(measure) else end)
        off = workers.rank() != 0
        with (
            Journal(self.folder, self.name, self.done, end) as journal,
            tqdm(steps, self.name, initial=self.done, total=end, disable=off) as bar,
        ):
            for step, batch in zip(bar, batches(steps), strict=True):
                rate = max(map(float, self.rates.get_last_lr()))
                figures = self._step(batch)
                more = frames_per_second(bar.format_dict["rate"], batch)
                shown = {key: f"{value:.3f}" for key, value in figures.items()}
                bar.set_postfix(shown | {key: f"{value:.0f}" for key, value in more.items()})
                journal.add(LOSSES, step, figures, more | {"learning_rate": rate})
                self.done = step + 1
                if self.done % self.schedule.save_every == 0 or self.done == end:
                    loss = self._validate(validation(), journal)
                    figures |= loss
                    if measure is not None:
                        figures |= self._measure(measure, journal)
                    elif loss:
                        self._judge(loss["validation"])
                    self._save(journal)
                    if report is not None:
                        figures |= {"step": self.done}
                        report({f"{self.name}/{key}": value for key, value in figures.items()})
                    if self._ended(measure):
                        break
        self.net.load_state_dict(self._result(measure is not None))

    def _portions(self, net: Net, batch: Any) -> Iterator[Portion]:
        for objective in self.objectives:
            yield from objective.portions(net, batch)

    def _step(self, batch: Any) -> dict[str, float]:
        """Return the step's figures and the length of its gradient before clipping.

        Raises FloatingPointError, before the weights change, if one of them is not finite.
        """
        self.optimiser.zero_grad(set_to_none=True)
        figures: dict[str, Tensor] = {}
        for portion in self._portions(self.net, batch):
            portion.loss.backward()
            for name, value in portion.shown.items():
                figures[name] = figures[name] + value if name in figures else value
        workers.sum_gradients(self.net.parameters())
        gradients = [p.grad for p in self.net.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        assert figures.keys() <= set(self.shown), f"{[*figures]} are not all of {self.shown}"
        values = workers.summed(self._row(figures.get(name) for name in self.shown))
        names = [*self.shown, GRADIENT_NORM]
        row = dict(zip(names, workers.read(torch.cat([values, self._row([norm])])), strict=True))
        self._check(row)
        nn.utils.clip_grads_with_norm_(self.net.parameters(), 1.0, norm)
        self.optimiser.step()
        self.rates.step()
        self.averaged.update_parameters(self.net)
        return row

    def _row(self, values: Iterable[Tensor | None]) -> Tensor:
        """Return scalars as one vector, so that they are summed and read at once; None is 0."""
        zero = torch.zeros((), device=self.device)
        return torch.stack([zero if value is None else value.float() for value in values])

    def _check(self, row: dict[str, float]) -> None:
        """Raise FloatingPointError, on all workers alike, if a figure of a step is not finite."""
        bad = [name for name, value in row.items() if not math.isfinite(value)]
        if bad:
            figures = ", ".join(f"{name} {value:.4g}" for name, value in row.items())
            learning = self.net.named_parameters()
            wrong = [n for n, p in learning if p.grad is not None and not p.grad.isfinite().all()]
            raise FloatingPointError(
                f"stage {self.name}, step {self.done}: expected finite figures, got {figures}; "
                f"not finite: {', '.join(bad)}; gradients that are not finite: "
                f"{len(wrong)} {wrong[:3]}. The saved states are those of earlier steps. Try a "
                "lower rate (--set STAGE.rate=…) or --set dtype=float32: the run resumes from "
                f"{self.folder.url}/{self._file('state')}"
            )

    @torch.no_grad()
    def _validate(self, batches: Iterable[Any], journal: Journal) -> dict[str, float]:
        """Return the mean loss of the averaged weights."""
        losses = []
        for batch in batches:
            net = cast(Net, self.averaged.module)
            own = [portion.loss.detach() for portion in self._portions(net, batch)]
            losses.append(self._row(own).sum() if own else None)
        if not losses:
            return {}
        loss = workers.read(workers.summed(self._row(losses)).mean()[None])[0]
        self._check({"validation": loss})
        journal.add(VALIDATION, self.done, {"loss": loss})
        return {"validation": loss}

    @torch.no_grad()
    def _measure(self, measure: Callable[[Net], float], journal: Journal) -> dict[str, float]:
        """Return the figure of the averaged weights, and judge them by it.

        Worker 0's counts, so that all workers end at the same step.
        """
        own = measure(cast(Net, self.averaged.module))
        first = torch.tensor([own if workers.rank() == 0 else 0.0], device=self.device)
        figure = workers.read(workers.summed(first))[0]
        journal.add(MEASURES, self.done, {"figure": figure})
        self._judge(-figure)
        return {"measured": figure}

    def _judge(self, score: float) -> None:
        """Keep the averaged weights if their score is the lowest so far."""
        better = score < self.lowest
        if better and workers.rank() == 0:
            save_tensors(self.folder, self._file("best"), self.averaged.module.state_dict())
        self.lowest = min(self.lowest, score)
        self.without_gain = 0 if better else self.without_gain + 1

    def _ended(self, measure: object) -> bool:
        """Return whether the stage has ended early, after its patience."""
        return measure is not None and self.without_gain >= self.schedule.patience

    def _result(self, measured: bool) -> dict[str, Tensor]:
        if (self.schedule.keep == "best" or measured) and self.lowest < math.inf:
            return cast(dict[str, Tensor], load_tensors(self.folder, self._file("best")))
        return self.averaged.module.state_dict()

    def _file(self, content: str) -> str:
        return f"{self.name}.{content}.pt"

    def _parts_of_state(self) -> dict[str, Any]:
        return {
            "model": self.net,
            "averaged": self.averaged,
            "optimizer": self.optimiser,
            "schedule": self.rates,
        }

    def _save(self, journal: Journal) -> None:
        journal.save()
        if workers.rank() == 0:
            state = {key: part.state_dict() for key, part in self._parts_of_state().items()}
            progress = {key: getattr(self, key) for key in PROGRESS}
            save_tensors(self.folder, self._file("state"), state | progress)
        workers.wait(self.device)  # until worker 0 has written the files

    def _resume(self) -> None:
        if self.folder.exists(self._file("state")):
            state = load_tensors(self.folder, self._file("state"))
            for key, part in self._parts_of_state().items():
                part.load_state_dict(state[key])
            for key in PROGRESS:
                setattr(self, key, state.get(key, getattr(self, key)))  # older states have fewer
        # A network file system may show an older state on another node.
        apart = workers.differ(torch.tensor([self.done], device=self.device))
        if apart:
            raise OSError(
                f"stage {self.name}: {apart} of {workers.count()} workers read another state than "
                f"worker 0 from {self.folder.url}: expected the same file on all nodes; start the "
                "run again once they see the same files"
            )


def frames_per_second(steps_per_second: float | None, batch: Any) -> dict[str, float]:
    """Return all workers' frames per second, to display beside the steps; empty if unknown."""
    if steps_per_second is None or not isinstance(batch, Sized):
        return {}
    return {"frames/s": steps_per_second * len(batch) * workers.count()}


def load_tensors(folder: Folder, name: str) -> Any:
    """Return the content of a file of ``save_tensors``, on the CPU."""
    with folder.open(name) as file:
        return torch.load(file, map_location="cpu", weights_only=True)


def save_tensors(folder: Folder, name: str, content: object) -> None:
    """Write tensors into a file. Raises OSError, which says what to do, if that fails."""
    try:
        with folder.replacing(name) as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        free = ""
        if folder.disk is not None:
            free = f": {shutil.disk_usage(folder.disk).free / 2**20:.0f} MiB are free there"
        raise OSError(
            f"{name} could not be written to {folder.url} ({error}){free}; free some space and "
            "start the run again, it resumes from its last saved state"
        ) from error

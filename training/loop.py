"""The training loop of every stage: train, average, validate, report, save, resume."""

import io
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TextIO, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from samclip_core.io.files import replacing
from training import workers
from training.schedule import Schedule, rate_at


@dataclass(frozen=True)
class Part:
    """A part of a step's loss, scaled to its share of the global batch, with figures to display.

    Parts are backpropagated one by one, so that only one graph is in memory at a time.
    """

    loss: Tensor
    shown: dict[str, Tensor]


Net = TypeVar("Net", bound=nn.Module)
GRADIENT_NORM = "gradient_norm"  # the figure that every step adds to those of its parts
Parts = Callable[[Net, Any], Iterator[Part]]


class Stage(Generic[Net]):
    """A stage of a run: its network, the moving average of its weights, and its resumable state.

    ``folder`` holds ``NAME.state.pt``, from which a run resumes, ``NAME.best.pt``, the averaged
    weights with the lowest validation loss, and the curves ``NAME.losses.tsv`` and
    ``NAME.validation.tsv``.
    """

    def __init__(
        self,
        name: str,
        net: Net,
        optimiser: torch.optim.Optimizer,
        schedule: Schedule,
        folder: Path,
        shown: Sequence[str],
    ) -> None:
        """Resume from ``folder``; ``shown`` names all figures that parts of this stage display.

        A worker without a share of a part does not display its figures, so it cannot know them.
        """
        self.name, self.net, self.schedule, self.folder = name, net, schedule, folder
        self.shown = shown
        self.device = next(net.parameters()).device
        self.averaged = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(schedule.average))
        self.optimiser = optimiser
        self.rates = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: rate_at(s, schedule))
        self.lowest = math.inf
        self.done = 0
        self._resume()

    def fit(
        self,
        batches: Callable[[range], Iterable[Any]],
        parts: Parts[Net],
        validation: Callable[[], Iterable[Any]] = tuple,
        report: Callable[[dict[str, float]], None] | None = None,
    ) -> None:
        """Run the remaining steps, then load the averaged weights into the network.

        ``batches(steps)`` yields this worker's part of each step, ``parts(net, batch)`` the loss of
        a step part by part. A step depends only on its number, so an interrupted run resumes with
        the same result. With ``validation``, the weights with the lowest validation loss are used,
        unless the schedule keeps the last ones. Every worker calls ``report`` at the same steps.
        """
        steps = range(self.done, self.schedule.steps)
        with (
            self._log() as log,
            tqdm(
                steps,
                desc=self.name,
                initial=self.done,
                total=self.schedule.steps,
                disable=workers.rank() != 0,
            ) as bar,
        ):
            for step, batch in zip(bar, batches(steps), strict=True):
                figures = self._step(batch, parts)
                _line(log, {"step": step} | figures)
                shown = {key: f"{value:.3f}" for key, value in figures.items()}
                bar.set_postfix(shown | frames_per_second(bar.format_dict["rate"], batch))
                self.done = step + 1
                if self.done % self.schedule.save_every == 0 or self.done == self.schedule.steps:
                    log.flush()
                    figures |= self._validate(validation(), parts)
                    self._save()
                    workers.wait(self.device)  # until worker 0 has written the files
                    if report is not None:
                        figures |= {"step": self.done}
                        report({f"{self.name}/{key}": value for key, value in figures.items()})
        self.net.load_state_dict(self._result())

    def _step(self, batch: Any, parts: Parts[Net]) -> dict[str, float]:
        """Return the step's figures and the length of its gradient before clipping.

        Raises FloatingPointError, before the weights change, if one of them is not finite.
        """
        self.optimiser.zero_grad(set_to_none=True)
        figures: dict[str, Tensor] = {}
        for part in parts(self.net, batch):
            part.loss.backward()
            _add(figures, part.shown)
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
                f"{self._file('state.pt')}"
            )

    @torch.no_grad()
    def _validate(self, batches: Iterable[Any], parts: Parts[Net]) -> dict[str, float]:
        """Return the mean loss of the averaged weights; save them if it is the lowest so far."""
        losses = []
        for batch in batches:
            own = [part.loss.detach() for part in parts(cast(Net, self.averaged.module), batch)]
            losses.append(self._row(own).sum() if own else None)
        if not losses:
            return {}
        loss = workers.read(workers.summed(self._row(losses)).mean()[None])[0]
        self._check({"validation": loss})
        if workers.rank() == 0:
            with self._file("validation.tsv").open("a") as log:
                _line(log, {"step": self.done, "loss": loss})
            if loss < self.lowest:
                _write(self._file("best.pt"), self.averaged.module.state_dict())
        self.lowest = min(self.lowest, loss)
        return {"validation": loss}

    def _result(self) -> dict[str, Tensor]:
        if self.schedule.keep == "best" and self.lowest < math.inf:
            best: dict[str, Tensor] = torch.load(self._file("best.pt"), weights_only=True)
            return best
        return self.averaged.module.state_dict()

    def _parts_of_state(self) -> dict[str, Any]:
        return {
            "model": self.net,
            "averaged": self.averaged,
            "optimizer": self.optimiser,
            "schedule": self.rates,
        }

    def _save(self) -> None:
        if workers.rank() == 0:
            state = {key: part.state_dict() for key, part in self._parts_of_state().items()}
            _write(self._file("state.pt"), state | {"done": self.done, "lowest": self.lowest})

    def _resume(self) -> None:
        if not self._file("state.pt").exists():
            return
        state = torch.load(self._file("state.pt"), map_location="cpu", weights_only=True)
        for key, part in self._parts_of_state().items():
            part.load_state_dict(state[key])
        self.done, self.lowest = int(state["done"]), float(state["lowest"])

    def _file(self, ending: str) -> Path:
        return self.folder / f"{self.name}.{ending}"

    def _log(self) -> TextIO:
        """Open the loss log, one line per step; drop the lines of steps that will run again."""
        if workers.rank() != 0:
            return io.StringIO()
        for ending in ("losses.tsv", "validation.tsv"):
            path = self._file(ending)
            limit = self.done + (ending == "validation.tsv")
            if path.exists() and (lines := path.read_text().splitlines(keepends=True)):
                kept = [line for line in lines[1:] if int(line.split("\t")[0]) < limit]
                path.write_text("".join([lines[0], *kept]))
        return self._file("losses.tsv").open("a")


def frames_per_second(steps_per_second: float | None, batch: Any) -> dict[str, str]:
    """Return all workers' frames per second, to display beside the steps; empty if unknown."""
    if steps_per_second is None or not isinstance(batch, Sized):
        return {}
    return {"frames/s": f"{steps_per_second * len(batch) * workers.count():.0f}"}


def _line(log: TextIO, values: dict[str, float]) -> None:
    """Write one row of a table, preceded by the column names if the table is empty."""
    if not log.tell():
        log.write("\t".join(values) + "\n")
    step, *others = values.values()
    log.write("\t".join([f"{step:.0f}", *(f"{value:.5f}" for value in others)]) + "\n")


def _add(figures: dict[str, Tensor], more: dict[str, Tensor]) -> None:
    for key, value in more.items():
        figures[key] = figures[key] + value if key in figures else value


def _write(path: Path, content: object) -> None:
    """Write a file atomically. Raises OSError with the free space if writing fails."""
    try:
        with replacing(path) as partial:
            torch.save(content, partial)
    except (OSError, RuntimeError) as error:
        free = shutil.disk_usage(path.parent).free / 2**20
        raise OSError(
            f"{path} could not be written ({error}): {free:.0f} MiB are free in {path.parent}; "
            "free some space and start the run again, it resumes from its last saved state"
        ) from error

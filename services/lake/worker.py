"""A worker of a batch: it holds the model, and does one part after another."""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from samclip.cli.places import retried

from samclip_core.engine import load as load_engine
from samclip_core.io import checkpoint
from samclip_core.io.folder import Folder
from samclip_core.io.image import ImageLimits
from samclip_core.model import SamClip
from services.lake import answers
from services.lake.heads import BatchHead
from services.lake.part import run_part
from services.lake.plan import Plan
from services.lake.seen import TELL_S
from services.lake.tables import FAILURES, IMAGES, UNREAD
from services.settings import Settings

NICE = 15
"""Niceness of workers on a CPU: a service on the same machine comes first."""
COUNTS = (IMAGES, FAILURES, UNREAD)
"""Fields of a stamp. Images that are unread are failures, too."""
logger = logging.getLogger(__name__)
AUTOGROUP = Path("/proc/self/autogroup")


class Worker:
    """Holds the model, and does parts of a batch. An actor of Ray Data."""

    def __init__(self, out: str, settings: Settings, cpus: int, seen: Any = None) -> None:
        """``seen``: the actor ``Seen``, if progress is shown.

        Raises CheckpointError, also if the model is not the one of the plan.
        """
        step_back(settings)
        self._seen, self._told = seen, 0.0
        plan = Plan.load(Folder(out))
        if plan is None:
            raise FileNotFoundError(
                f"{out} has no plan where this worker runs: give an --out that every process and "
                "node of the cluster reads and writes"
            )
        self._plan, self._cpus = plan, cpus
        self._model = load(as_planned(settings, plan), cpus)
        self._heads = answers.opened(self._model, plan.values["work"])["heads"]
        self._plan.check(needs(self._model, self._heads))
        from ray.util.metrics import Counter

        self._done = Counter(
            "samclip_batch_images_total", "Images that a batch has done.", tag_keys=("outcome",)
        )

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Do the part whose number is in the row; return how many images it has, or an error."""
        number = int(row["data"])
        try:
            stamp = retried(
                lambda: run_part(
                    *(self._model, self._plan, number, self._cpus, self._heads),
                    lambda images: self._tell(number, images),
                )
            )
        except Exception as error:  # Ray would put its own advice in place of the reason
            reason = f"part {number}: {type(error).__name__}: {error}"
            return {**dict.fromkeys(COUNTS, 0), "error": reason}
        self._tell(number, stamp.images + stamp.failures, done=True)
        for outcome in (IMAGES, FAILURES):
            if count := getattr(stamp, outcome):
                self._done.inc(count, {"outcome": outcome})
        return {**{name: getattr(stamp, name) for name in COUNTS}, "error": ""}

    def _tell(self, part: int, images: int, done: bool = False) -> None:
        if self._seen is not None and (done or time.monotonic() - self._told >= TELL_S):
            self._told = time.monotonic()
            self._seen.tell.remote(part, images, done)


def step_back(settings: Settings) -> None:
    """Lower the priority of this process for good, if it computes on CPUs.

    Where Linux shares the cores between sessions (autogroup), the niceness of a process counts only
    within its session, which also has the replicas of a service on the same Ray. So the process
    gets a session of its own, and the session the niceness.
    """
    if settings.device != "cpu":
        return
    os.nice(max(0, NICE - os.nice(0)))
    if not AUTOGROUP.exists():
        return
    try:
        if os.getsid(0) != os.getpid():
            if os.getpgid(0) == os.getpid():  # the leader of a group cannot leave a session
                os.setpgid(0, os.getpgid(os.getppid()))
            os.setsid()
        retried(lambda: AUTOGROUP.write_text(str(NICE)))  # the kernel allows ten changes a second
    except OSError as error:
        logger.warning("a worker has low priority within its session alone: %s", error)


def as_planned(settings: Settings, plan: Plan | None) -> Settings:
    """Return the settings with the precision of the plan, if they ask for ``auto``.

    ``auto`` measures, and beside other work may choose differently than when the plan was made.
    """
    if plan is None or settings.dtype != "auto":
        return settings
    dtype, _, _ = plan.values["model"]["dtype"].partition(":")
    return settings.model_copy(update={"dtype": dtype})


def load(settings: Settings, cpus: int) -> SamClip:
    """Load the model of the settings for this many cores. Raises CheckpointError."""
    directory = checkpoint.resolve(settings.checkpoint)
    engine = load_engine(
        directory,
        settings.device,
        settings.dtype,
        cache_dir=settings.compiled_cache_dir,
        threads=settings.threads or cpus,
    )
    limits = ImageLimits(settings.max_image_bytes, settings.max_image_pixels)
    return SamClip(directory, engine, limits)


def needs(model: SamClip, heads: Sequence[BatchHead]) -> dict[str, Any]:
    """Return the values of a plan for the model and the code that its result depends on."""
    of_heads = {"heads": {head.column: head.digest for head in heads}} if heads else {}
    return {"model": described(model), **of_heads}


def described(model: SamClip) -> dict[str, Any]:
    """Return what the result depends on of the model."""
    return {
        "name": model.config.name,
        "digest": model.digest,
        "graphs": model.graphs,
        "dtype": model.dtype,
        "dimension": model.config.text_dim,
    }


def examined(settings: Settings, work: Mapping[str, Any], cpus: int) -> dict[str, Any]:
    """Check the work, in a process that then ends; return what the plan says of model and heads."""
    model = load(settings, cpus)
    work = answers.opened(model, work)
    answers.check(model, work)
    return needs(model, work["heads"])

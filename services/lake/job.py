"""The Ray Data job of a batch: workers that each hold the model and do one part after another."""

import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractContextManager,
    contextmanager,
    nullcontext,
    redirect_stdout,
    suppress,
)
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import samclip
from samclip import progress

from samclip_core.engine.processor import cores
from samclip_core.errors import CheckpointError, SamClipError
from samclip_core.io import private_ray
from samclip_core.io.folder import Folder
from services.lake import exports
from services.lake.plan import Plan, listed
from services.lake.seen import watched
from services.lake.tables import FAILURES, PARTIAL, SCHEMA, UNREAD, writing
from services.lake.worker import COUNTS, Worker, as_planned, examined
from services.settings import MIB, Settings
from services.sources.item import Columns, Part, SourceError
from services.sources.listing import parts

BLOCKS = 4096
"""Most blocks of part numbers that Ray Data keeps track of."""
MANIFEST = "manifest.json"
WORKERS_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}


class WorkerFailed(RuntimeError):
    """A worker cannot go on: its disk is full, a table is gone, or the cluster has no room."""


class TooManyFailures(RuntimeError):
    """More images failed than the caller allows."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much of the machine or the cluster to use; ``workers`` 0: as many as are free."""

    workers: int = 0
    cpus: int = 1
    gpus: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """A batch: ``work`` is a field of each question, as ``services.lake.answers`` reads it."""

    sources: Sequence[str]
    out: str
    work: Mapping[str, Any]
    settings: Settings
    columns: Columns
    budget: Budget
    part_size: int = 256
    max_failures: int | None = None
    coco: bool = False


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run has made: the manifest, and why the sources are no longer those of the plan."""

    manifest: Mapping[str, Any]
    changed: str = ""

    @property
    def unread(self) -> int:
        """How many images could not be read: the next run tries their parts again."""
        count: int = self.manifest["counts"][UNREAD]
        return count


def run(job: Job, shown: bool, ready: Callable[[Settings], object] | None = None) -> Result:
    """Do what is missing of a batch, and describe it in its manifest.

    ``ready`` is called before the work, once Ray runs: Ray forks to start, and LanceDB's threads
    do not survive that.
    Raises SourceError, PlanMismatch, SamClipError, OSError, TooManyFailures, and ValueError for
    a data set of COCO without masks.
    """
    if job.coco:
        exports.check(job.work)
    folder = Folder(job.out)
    folder.check()
    if shown:
        print(f"starting Ray, and loading {job.settings.checkpoint} …", file=sys.stderr)
    with connected(job.budget.cpus, job.budget.gpus):
        if ready:
            ready(job.settings)
        plan, changed = _plan(job, folder, shown)
        done = plan.done()
        missing = [number for number in range(plan.count) if number not in done]
        found = {name: sum(getattr(stamp, name) for stamp in done.values()) for name in COUNTS}
        _check_failures(job, found)
        if missing:
            with suppress(FileNotFoundError):
                folder.remove(MANIFEST)
        before = {number: stamp.images + stamp.failures for number, stamp in done.items()}
        bar: AbstractContextManager[Any] = nullcontext()
        if shown and missing:
            environment = _resources(job.budget)["runtime_env"]
            bar = watched(before, plan.count, plan.images, environment)
        with bar as seen:
            for row in _rows(job, folder, missing, seen):
                if row["error"]:
                    raise WorkerFailed(row["error"])
                for name in found:
                    found[name] += int(row[name])
                _check_failures(job, found)
    if job.coco:
        exports.write(plan)
    return Result(manifest=_manifest(plan, found), changed=changed)


@contextmanager
def connected(cpus: int, gpus: float) -> Iterator[None]:
    """Connect to the Ray of RAY_ADDRESS, or else run one for this command alone.

    Raises ValueError if this machine has no room for a worker of so many cores and GPUs: Ray would
    wait for ever. A cluster may grow. Unavailable and OSError as ``private_ray.connected``.

    What Ray prints, such as the error of a lost node, goes to stderr: stdout is the command's.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it warns of what Ray Data does
    with redirect_stdout(sys.stderr):
        import ray
        import ray.data

        logging.getLogger("ray.data").setLevel(logging.ERROR)
        with private_ray.connected(
            ray,
            num_cpus=cores(),
            object_store_memory=128 * MIB,
            log_to_driver=False,
            logging_level=logging.ERROR,
        ) as own:
            found = ray.cluster_resources()
            cores_here, gpus_here = found.get("CPU", 0), found.get("GPU", 0)
            if own and (cpus > cores_here or gpus > gpus_here):
                raise ValueError(
                    f"a worker takes {cpus} cores and {gpus:g} GPUs, and this machine has "
                    f"{cores_here:g} and {gpus_here:g}: lower --cpus-per-worker or "
                    "--gpus-per-worker, or set another --device"
                )
            yield


def _plan(job: Job, folder: Folder, shown: bool) -> tuple[Plan, str]:
    """Return the plan in the folder, made now if there is none, after a check of the model.

    Also return why the sources are no longer those of the plan, if so.
    """
    plan = Plan.load(folder)
    try:
        needed = _examined(job, as_planned(job.settings, plan))
    except CheckpointError:
        if plan is None or job.settings.dtype != "auto":
            raise
        needed = _examined(job, job.settings)  # another model, which lacks the plan's precision
    about = {
        "schema": SCHEMA,
        "sources": [*job.sources],
        "columns": [*job.columns],
        "work": dict(job.work),
        **needed,
        "part_size": job.part_size,
    }
    found = parts(job.sources, job.columns, job.part_size)
    with progress.bar("planned", 0, shown) as planned:
        if plan is None:
            plan = Plan.make(folder, found, about, planned)
            plan.check(about)  # another run may have been faster
            return plan, ""
        plan.check(about)
        return plan, _changed(plan, found, planned)


def _changed(plan: Plan, found: Iterator[Part], planned: Callable[[int], None]) -> str:
    """Return why the sources are no longer those of the plan: which this run follows."""
    try:
        now = listed(found, planned, lambda at, lines: None)
    except (SourceError, OSError) as error:
        return f"the sources cannot be listed now: {error}"
    same = now.items() <= plan.values.items()
    return "" if same else "the sources have other images now than when they were listed"


def _examined(job: Job, settings: Settings) -> dict[str, Any]:
    import ray

    describe = ray.remote(examined).options(**_resources(job.budget))
    try:
        found: dict[str, Any] = ray.get(describe.remote(settings, job.work, job.budget.cpus))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, SamClipError):
            raise error.cause from None
        if not job.work.get("heads"):
            raise error from None
        print(error, file=sys.stderr)  # where the code of a head has failed
        raise WorkerFailed(f"{type(error.cause).__name__}: {error.cause}") from None
    return found


def _resources(budget: Budget) -> dict[str, Any]:
    variables = dict(WORKERS_ENVIRONMENT)
    if path := os.environ.get("PYTHONPATH"):  # an installed command has its services there
        variables["PYTHONPATH"] = path
    return {
        "num_cpus": budget.cpus,
        "num_gpus": budget.gpus,
        "runtime_env": {"env_vars": variables},
    }


def _rows(
    job: Job, folder: Folder, missing: Sequence[int], seen: Any = None
) -> Iterator[Mapping[str, Any]]:
    """Yield the numbers of images of each missing part when it is done, in any order.

    ``error`` of a row says why its part could not be done.
    """
    if not missing:
        return
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    free = ray.available_resources()
    fits = [free.get("CPU", 0) // job.budget.cpus] if job.budget.cpus else []
    fits += [free.get("GPU", 0) // job.budget.gpus] if job.budget.gpus else []
    workers = min(job.budget.workers or max(1, int(min(fits))), len(missing))
    blocks = np.array_split(np.array(missing), min(len(missing), BLOCKS))
    done = ray.data.from_numpy(blocks).map(
        Worker,
        fn_constructor_args=(folder.url, job.settings, job.budget.cpus, seen),
        compute=ray.data.ActorPoolStrategy(size=workers),
        **_resources(job.budget),
    )
    try:
        yield from done.iter_rows()
    except ray.exceptions.RayError as error:
        raise WorkerFailed(str(error).strip().splitlines()[-1]) from error


def _check_failures(job: Job, found: Mapping[str, int]) -> None:
    if job.max_failures is not None and found[FAILURES] > job.max_failures:
        raise TooManyFailures(
            f"{found[FAILURES]} images failed, at most {job.max_failures} may: see "
            f"{job.out}/{FAILURES}; a further run with a larger --max-failures does the rest"
        )


def _manifest(plan: Plan, found: Mapping[str, int]) -> dict[str, Any]:
    """Store what was made of what, and return it."""
    about = {name: plan.values[name] for name in plan.values if name not in ("images", "listing")}
    versions = {"samclip": samclip.__version__, "pyarrow": version("pyarrow")}
    manifest = {**about, "plan": plan.digest, "versions": versions, "counts": dict(found)}
    with writing(plan.folder, MANIFEST) as file:
        file.write_text(json.dumps(manifest, indent=2) + "\n")
    if plan.folder.disk is not None:  # of writers that were killed
        shutil.rmtree(plan.folder.disk / PARTIAL, ignore_errors=True)
    return manifest

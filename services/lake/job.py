"""The Ray Data job of a batch: workers that each hold the model and do one part after another."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import samclip
from samclip import progress

from samclip_core.errors import CheckpointError, SamClipError
from samclip_core.io.folder import Folder
from services.lake import exports
from services.lake.own_ray import connected
from services.lake.part import counts
from services.lake.plan import Plan
from services.lake.tables import FAILURES, IMAGES, PARTIAL, SCHEMA, writing
from services.lake.worker import Worker, as_planned, examined
from services.settings import Settings
from services.sources.item import Columns
from services.sources.listing import parts

BLOCKS = 4096
"""Most blocks of part numbers that Ray Data keeps track of."""
READERS = 32
"""Files of an earlier run whose rows are counted at once: stores answer slowly."""
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
    formats: Sequence[str] = ()


def run(job: Job, shown: bool) -> dict[str, Any]:
    """Do what is missing of a batch; return its manifest.

    Raises SourceError, PlanMismatch, SamClipError, OSError, TooManyFailures, and ImportError or
    ValueError for a format that is not possible.
    """
    for form in job.formats:
        exports.check(form, job.work)
    folder = Folder(job.out)
    folder.check()
    with connected(job.budget.cpus, job.budget.gpus), ExitStack() as stack:
        plan = _plan(job, folder, shown)
        missing = plan.missing()
        found = _known(plan, set(range(plan.count)) - set(missing))
        _check_failures(job, found)
        total = plan.count if plan.images is None else plan.images
        what = "parts" if plan.images is None else "images"
        done = plan.count - len(missing) if plan.images is None else sum(found.values())
        advance = stack.enter_context(progress.bar(what, total, shown))
        advance(done)
        for row in _rows(job, folder, missing):
            if row["error"]:
                raise WorkerFailed(row["error"])
            for table in found:
                found[table] += int(row[table])
            advance(1 if plan.images is None else sum(int(row[table]) for table in found))
            _check_failures(job, found)
    for form in {*job.formats} & exports.FORMS.keys():
        exports.write(plan, form)
    return _manifest(plan, found)


def _plan(job: Job, folder: Folder, shown: bool) -> Plan:
    """Return the plan in the folder, made now if there is none, after a check of the model."""
    plan = Plan.load(folder)
    try:
        model = _examined(job, as_planned(job.settings, plan))
    except CheckpointError:
        if plan is None or job.settings.dtype != "auto":
            raise
        model = _examined(job, job.settings)  # another model, which lacks the plan's precision
    about = {
        "sources": [*job.sources],
        "columns": [*job.columns],
        "work": dict(job.work),
        "model": model,
        "part_size": job.part_size,
        "webdataset": "webdataset" in job.formats,
    }
    if plan is None:
        with progress.bar("planned", 0, shown) as planned:
            listed = parts(job.sources, job.columns, job.part_size)
            plan = Plan.make(folder, listed, about, planned)
    plan.check(about)
    return plan


def _examined(job: Job, settings: Settings) -> dict[str, Any]:
    import ray

    describe = ray.remote(examined).options(**_resources(job.budget))
    try:
        found: dict[str, Any] = ray.get(describe.remote(settings, job.work, job.budget.cpus))
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, SamClipError) else error from None
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


def _known(plan: Plan, done: set[int]) -> dict[str, int]:
    """Return the numbers of rows of the parts that earlier runs have done."""
    found = {IMAGES: 0, FAILURES: 0}
    with ThreadPoolExecutor(READERS) as pool:
        for each in pool.map(partial(counts, plan), done):
            for table, count in each.items():
                found[table] += count
    return found


def _rows(job: Job, folder: Folder, missing: Sequence[int]) -> Iterator[Mapping[str, Any]]:
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
        fn_constructor_args=(folder.url, job.settings, job.budget.cpus),
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
    manifest = {**about, "schema": SCHEMA, "versions": versions, "counts": dict(found)}
    with writing(plan.folder, "manifest.json") as file:
        file.write_text(json.dumps(manifest, indent=2) + "\n")
    if plan.folder.disk is not None:  # of writers that were killed
        shutil.rmtree(plan.folder.disk / PARTIAL, ignore_errors=True)
    return manifest

"""The Ray Data job of a batch: workers that each hold the model and do one part after another."""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import samclip
from ray.util.metrics import Counter
from samclip import progress

from samclip_core.engine import load as load_engine
from samclip_core.engine.processor import cores
from samclip_core.errors import SamClipError
from samclip_core.io import checkpoint
from samclip_core.io.folder import Folder
from samclip_core.io.image import ImageLimits
from samclip_core.model import SamClip
from services.lake import answers, exports
from services.lake.part import counts, run_part
from services.lake.plan import Plan
from services.lake.sources import Columns, parts
from services.lake.tables import FAILURES, IMAGES, PARTIAL, SCHEMA, writing
from services.settings import MIB, Settings

NICE = 15
"""Niceness of workers on a CPU: a service on the same machine comes first."""
BLOCKS = 4096
"""Most blocks of part numbers that Ray Data keeps track of."""
OWN_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # it warns of what Ray Data does by itself
    "RAY_worker_niceness": "0",  # a nice worker may not start in time on a busy machine
    "RAY_worker_register_timeout_seconds": "300",
}
"""Variables of Ray where it runs for this command alone."""
WORKERS_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}


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


class Worker:
    """Holds the model, and does parts of a batch. An actor of Ray Data."""

    def __init__(self, out: str, settings: Settings, cpus: int) -> None:
        """Raises CheckpointError, also if the model is not the one of the plan."""
        if settings.device == "cpu":
            os.nice(max(0, NICE - os.nice(0)))
        plan = Plan.load(Folder(out))
        assert plan is not None
        self._plan, self._cpus = plan, cpus
        self._model = load(settings, cpus)
        self._plan.check({"model": described(self._model)})
        self._done = Counter(
            "samclip_batch_images_total", "Images that a batch has done.", tag_keys=("outcome",)
        )

    def __call__(self, row: dict[str, Any]) -> dict[str, int]:
        """Do the part whose number is in the row; return how many images it has."""
        found = run_part(self._model, self._plan, int(row["data"]), self._cpus)
        for outcome, count in found.items():
            if count:
                self._done.inc(count, {"outcome": outcome})
        return found


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


def described(model: SamClip) -> dict[str, Any]:
    """Return what the result depends on."""
    return {
        "name": model.config.name,
        "digest": model.digest,
        "graphs": model.graphs,
        "dtype": model.dtype,
        "dimension": model.config.text_dim,
    }


def _described(settings: Settings, work: Mapping[str, Any], cpus: int) -> dict[str, Any]:
    """Check the work, in a process that then ends; return what the model is."""
    model = load(settings, cpus)
    answers.check(model, work)
    return described(model)


def run(job: Job, shown: bool) -> dict[str, Any]:
    """Do what is missing of a batch; return its manifest.

    Raises SourceError, PlanMismatch, SamClipError, OSError, TooManyFailures, and ImportError or
    ValueError for a format that is not possible.
    """
    for form in job.formats:
        exports.check(form, job.work)
    folder = Folder(job.out)
    folder.check()
    with _ray(), ExitStack() as stack:
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
            for table in found:
                found[table] += int(row[table])
            advance(1 if plan.images is None else sum(map(int, row.values())))
            _check_failures(job, found)
    for form in {*job.formats} & exports.FORMS.keys():
        exports.write(plan, form)
    return _manifest(plan, found)


def _plan(job: Job, folder: Folder, shown: bool) -> Plan:
    """Return the plan in the folder, made now if there is none, after a check of the model."""
    describe = ray.remote(_described).options(**_resources(job.budget))
    try:
        model = ray.get(describe.remote(job.settings, job.work, job.budget.cpus))
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, SamClipError) else error from None
    about = {
        "sources": [*job.sources],
        "columns": [*job.columns],
        "work": dict(job.work),
        "model": model,
        "part_size": job.part_size,
        "webdataset": "webdataset" in job.formats,
    }
    plan = Plan.load(folder)
    if plan is None:
        with progress.bar("planned", 0, shown) as planned:
            listed = parts(job.sources, job.columns, job.part_size)
            plan = Plan.make(folder, listed, about, planned)
    plan.check(about)
    return plan


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
    found = {IMAGES: 0, FAILURES: 0}
    for number in done:
        for table, count in counts(plan, number).items():
            found[table] += count
    return found


def _rows(job: Job, folder: Folder, missing: Sequence[int]) -> Iterator[Mapping[str, int]]:
    """Yield the numbers of images of each missing part when it is done, in any order."""
    if not missing:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    free = ray.available_resources()
    fits = [free.get("CPU", 0) // job.budget.cpus] if job.budget.cpus else []
    fits += [free.get("GPU", 0) // job.budget.gpus] if job.budget.gpus else []
    workers = min(job.budget.workers or max(1, int(min(fits))), len(missing))
    blocks = np.array_split(np.array(missing), min(len(missing), BLOCKS))
    yield from (
        ray.data.from_numpy(blocks)
        .map(
            Worker,
            fn_constructor_args=(folder.url, job.settings, job.budget.cpus),
            compute=ray.data.ActorPoolStrategy(size=workers),
            **_resources(job.budget),
        )
        .iter_rows()
    )


def _check_failures(job: Job, found: Mapping[str, int]) -> None:
    if job.max_failures is not None and found[FAILURES] > job.max_failures:
        raise TooManyFailures(
            f"{found[FAILURES]} images failed, at most {job.max_failures} may: see "
            f"{job.out}/{FAILURES}; a further run with a larger --max-failures does the rest"
        )


def _manifest(plan: Plan, found: Mapping[str, int]) -> dict[str, Any]:
    """Store what was made of what, and return it."""
    about = {name: plan.values[name] for name in plan.values if name not in ("images", "listing")}
    versions = {"samclip": samclip.__version__, "ray": ray.__version__, "pyarrow": pa.__version__}
    manifest = {**about, "schema": SCHEMA, "versions": versions, "counts": dict(found)}
    with writing(plan.folder, "manifest.json") as file:
        file.write_text(json.dumps(manifest, indent=2) + "\n")
    if plan.folder.disk is not None:  # of writers that were killed
        shutil.rmtree(plan.folder.disk / PARTIAL, ignore_errors=True)
    return manifest


@contextmanager
def _ray() -> Iterator[None]:
    """Connect to the Ray of RAY_ADDRESS, or else run one for this command alone."""
    with ExitStack() as stack:
        options: dict[str, Any] = {"address": os.environ.get("RAY_ADDRESS", "local")}
        if options["address"] == "local":
            os.environ |= OWN_RAY | {
                name: os.environ[name] for name in OWN_RAY if name in os.environ
            }
            # The paths of sockets must be short.
            made = tempfile.TemporaryDirectory(prefix="samclip-", ignore_cleanup_errors=True)
            options |= {
                "num_cpus": cores(),
                "include_dashboard": False,
                "object_store_memory": 128 * MIB,
                "_temp_dir": stack.enter_context(made),
            }
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        stack.callback(ray.shutdown)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        yield

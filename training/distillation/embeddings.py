"""Compute and store a CLIP teacher's embeddings, so that epochs need not run the teacher again.

    python -m training.distillation.embeddings --recipe vit-b --clip … --views 4 --out runs/targets

A Ray Data job processes the photographs in parts on the given number of workers and skips parts
that exist. ``training.data.targets`` defines and reads the stored files.
"""

import argparse
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from samclip_core.io import checkpoint, own_ray
from samclip_core.io.files import replacing
from samclip_core.nn.text_encoder import load_text_encoder
from training.data.annotations import imagenet_names
from training.data.frames import View, stacked_views
from training.data.sample import BadSample
from training.data.sources import Source, open_source
from training.data.targets import Array, Plan, crop_of, identity, pooled_file
from training.distillation.teachers import ClipTeacher, class_embeddings, load_words
from training.options import RECIPE_FORMS, locate, photograph_sets, recipe_of
from training.recipes import Recipe

log = logging.getLogger(__name__)
Pixels = NDArray[np.uint8]  # 3LL

AT_ONCE = 16  # samples whose views form one batch of the teacher


class Embedder:
    """The map function of the Ray Data job: computes one part with its own copy of the teacher."""

    def __init__(
        self, teacher: Any, sources: Sequence[Source], plan: Plan, folder: Path, device: str
    ) -> None:
        """Load ``teacher``, a module or a Ray reference to one."""
        module = ray.get(teacher) if isinstance(teacher, ray.ObjectRef) else teacher
        self.teacher: nn.Module = module.to(device)
        self.sources = {source.name: source for source in sources}
        self.plan, self.folder, self.device = plan, folder, device
        self.view: View = module.view
        self.width = self._run_teacher(torch.zeros(1, 3, self.view.side, self.view.side)).shape[1]

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Compute the part that starts at ``row``'s sample; return the number of broken samples."""
        source, start = self.sources[row["source"]], int(row["start"])
        indices = range(start, min(start + self.plan.part, len(source)))
        pooled_NKD = np.full((len(indices), self.plan.views, self.width), np.nan, np.float16)
        decoded, usable = self._ahead(source, indices), 0
        for first in range(0, len(indices), AT_ONCE):
            good = {
                row: views for row, views in enumerate(islice(decoded, AT_ONCE), first) if views
            }
            usable += len(good)
            if good:
                pooled_NKD[list(good)] = self._pooled(list(good.values()))
        path = pooled_file(self.folder, source.name, start, self.plan.part)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial, partial.open("wb") as file:
            np.save(file, pooled_NKD)
        return {"broken": len(indices) - usable}

    def _ahead(self, source: Source, indices: range) -> Iterator[list[Pixels]]:
        """Yield the views of each sample; decode the next ones while the teacher runs."""
        pending: deque[Future[list[Pixels]]] = deque()
        with ThreadPoolExecutor() as pool:
            for index in indices:
                pending.append(pool.submit(self._views, source, index))
                if len(pending) == 2 * AT_ONCE:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def _views(self, source: Source, index: int) -> list[Pixels]:
        """Return all views of a sample, or none if it is broken."""
        try:
            sample = source[index]
            crops = (crop_of(sample, view) for view in range(self.plan.views))
            return [crop.views(sample, [self.view])[0] for crop in crops]
        except BadSample as error:
            log.warning("skipped: %s", error)
            return []

    def _pooled(self, views: Sequence[list[Pixels]]) -> Array:
        """Return ``pooled_BKD`` of K views of B samples."""
        pixels = stacked_views([pixels for of_sample in views for pixels in of_sample])
        pooled_VD = self._run_teacher(torch.from_numpy(pixels))
        pooled_BKD: Array = pooled_VD.unflatten(0, (len(views), -1)).half().cpu().numpy()
        return pooled_BKD

    @torch.no_grad()
    def _run_teacher(self, pixels_B3LL: Tensor) -> Tensor:
        sizes_B2 = torch.full((len(pixels_B3LL), 2), self.view.side, device=self.device)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            pooled_BD: Tensor = self.teacher(pixels_B3LL.to(self.device).float(), sizes_B2)[1]
            return pooled_BD


def embed(
    teacher: nn.Module,
    sources: Sequence[Source],
    folder: Path,
    plan: Plan,
    *,
    workers: int = 1,
    gpu: bool = False,
) -> int:
    """Store the teacher's outputs for all views in ``folder``; return the number of broken samples.

    The teacher maps float ``pixels_B3LL`` 0..255 of its ``view``, and ``sizes_B2``, to
    ``dense_BDhw`` and ``pooled_BD``. The plan's ``teacher`` and ``sources`` are filled in here.
    Raises ValueError if ``folder`` holds other targets or two sources have the same name.
    """
    digests = {source.name: source.digest() for source in sources}
    if len(digests) < len(sources):
        raise ValueError(f"expected unique source names, got {[source.name for source in sources]}")
    plan = replace(plan, teacher=identity(teacher), sources=digests)
    existing = Plan.read(folder)
    if existing:
        existing.check(folder, plan)
    replace(plan, sources=(existing.sources if existing else {}) | digests).write(folder)
    todo = [
        {"source": source.name, "start": number * plan.part}
        for source in sources
        for number, file in enumerate(plan.files(folder, source))
        if not file.exists()
    ]
    if not todo:
        return 0
    broken = 0
    with (
        own_ray.connected(ray),
        tqdm(desc=f"parts of {plan.part} photographs", total=len(todo)) as bar,
    ):
        job = ray.data.from_items(todo, override_num_blocks=len(todo)).map(
            Embedder,
            fn_constructor_kwargs={
                "teacher": ray.put(teacher),
                "sources": sources,
                "plan": plan,
                "folder": folder,
                "device": "cuda" if gpu else "cpu",
            },
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_gpus=1 if gpu else None,
        )
        for row in job.iter_rows():
            broken += row["broken"]
            bar.update()
            bar.set_postfix(broken=broken)
    return broken


def main(argv: Sequence[str] | None = None) -> int:
    """Store the outputs of a recipe's CLIP teacher; see ``--help``."""
    options = parser()
    arguments = options.parse_args(argv)
    recipe = arguments.recipe
    if recipe.kind == "vit-b" and not arguments.clip:
        options.error(f"recipe {recipe.name} needs a CLIP teacher: give --clip")
    arguments.data = photograph_sets(options, "--data", arguments.data)
    sources = [open_source(f"{arguments.data}/{name}") for name, _ in recipe.photo_sets]
    plan = Plan(teacher="", views=arguments.views)
    teacher = _teacher(recipe, arguments)
    out = arguments.out.resolve()
    broken = embed(teacher, sources, out, plan, workers=arguments.workers, gpu=arguments.gpu)
    print(f"{out}: {sum(map(len, sources))} photographs, {broken} of those computed now are broken")
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    options = argparse.ArgumentParser(
        prog="python -m training.distillation.embeddings",
        description="Compute and store a CLIP teacher's outputs.",
    )
    add = options.add_argument
    add(
        "--recipe",
        type=recipe_of,
        default="edge",
        metavar="NAME",
        help=f"recipe whose teacher runs: {RECIPE_FORMS}",
    )
    add("--data", help="folder or URL of the photograph sets (SAMCLIP_DATA)")
    add("--views", type=int, default=4, help="random crops per photograph")
    add("--out", type=Path, default=Path("runs/targets"))
    add("--text-tower", default="edge", help="edge: checkpoint of the text tower")
    add("--clip", metavar="MODEL:FILE", help="vit-b and mobile: as in training")
    add("--workers", type=int, default=1)
    add("--gpu", action="store_true", help="use one GPU per worker")
    return options


def _teacher(recipe: Recipe, arguments: argparse.Namespace) -> nn.Module:
    if recipe.kind == "vit-b":
        return load_words(locate({"clip": arguments.clip}, recipe.kind)["clip"]).teacher
    text_encoder = load_text_encoder(checkpoint.resolve(arguments.text_tower))
    names = imagenet_names(arguments.data)
    return ClipTeacher(class_embeddings(text_encoder, names), recipe.clip_teacher)


if __name__ == "__main__":
    raise SystemExit(main())

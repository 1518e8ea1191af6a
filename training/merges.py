"""The merges: from official or ImageNet models to the contents of a checkpoint.

L classes of the named sets, T classes, D width of the text space.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn

from samclip_core.answers.vocabularies import readable
from samclip_core.commands.models import MODELS
from samclip_core.config import SamClipConfig
from samclip_core.errors import CheckpointError
from samclip_core.families.edge.network import EdgeClipHead
from samclip_core.io import checkpoint
from samclip_core.io.folder import Folder
from samclip_core.licence import NOT_STATED, strictest
from samclip_core.nn.network import SAM_PARTS, SamClipNet, build
from samclip_core.nn.text_encoder import TextEncoder, load_text_encoder
from training import workers
from training.data.annotations import class_names, imagenet_names
from training.distillation import stages
from training.distillation.objectives import PhotoTeachers
from training.distillation.teachers import (
    ClipTeacher,
    class_embeddings,
    keep_start,
    load_sam,
    load_words,
    sam_weights,
    start_clip_head,
    student_from_sam,
)
from training.loop import load_tensors, save_tensors
from training.recipes import Run

Part: TypeAlias = dict[str, str]
"""``address`` and ``licence`` of a part, as the lineage of a published model has them."""
NAMES = "names.pt"
RADIO = "NVIDIA's: that of C-RADIO allows commercial use, that of RADIO does not"
"""The licence of a RADIO that was converted from files."""


class Merged(NamedTuple):
    """The result of a merge: the contents of a checkpoint and the origin of its teachers.

    ``published`` are the parts of the teachers that others publish, with their licences.
    """

    net: SamClipNet
    text_encoder: TextEncoder
    config: SamClipConfig
    teachers: dict[str, str]
    published: Sequence[Part] = ()


def merge_edge(run: Run) -> Merged:
    """Run the edge merge: both teachers start from ImageNet classifiers; SAM's is trained first.

    Head_CLIP's concepts are ImageNet's classes and those of the named sets.
    """
    recipe = run.recipe
    text_encoder = load_text_encoder(checkpoint.resolve(run.text_tower))
    classes = imagenet_names(run.data)
    concepts_TD = embedded(run, text_encoder, [*classes, *names_of(run)])
    class_text_TD, names_LD = concepts_TD[: len(classes)], concepts_TD[len(classes) :]
    assert run.config.clip_head is not None
    head = replace(run.config.clip_head, hidden=len(concepts_TD))
    config = replace(run.config, clip_head=head)

    sam_teacher = build(config, SAM_PARTS)
    assert recipe.sam_teacher is not None
    stages.train_sam_teacher(run, sam_teacher, recipe.sam_teacher)
    net = build(config)
    for part in SAM_PARTS:
        net.get_submodule(part).load_state_dict(sam_teacher.get_submodule(part).state_dict())
    assert isinstance(net.clip_head, EdgeClipHead)
    start_clip_head(net.clip_head, concepts_TD)
    start = copy.deepcopy(net.clip_head)
    clip_teacher = ClipTeacher(class_text_TD, recipe.clip_teacher).to(run.device)
    teachers = PhotoTeachers(clip_teacher, names_LD.to(run.device), text_encoder)
    run = replace(run, config=config)
    distil(run, net, teachers, sam_teacher)
    keep_start(net.clip_head, start, recipe.kept_start)
    origins = {
        "clip": f"EfficientNet-Lite{recipe.clip_teacher}, ImageNet-1k, class names embedded",
        "sam": "EfficientNet-Lite0, ImageNet-1k, then outlined regions",
        "names": ", ".join(recipe.named_sets),
        "text": run.text_tower,
        "start": checkpoint.digest(checkpoint.resolve(run.start)) if run.start else "",
    }
    known = {key: origin for key, origin in origins.items() if origin}
    return Merged(net, text_encoder, config, known)


def names_of(run: Run) -> list[str]:
    """Return the names of the classes of the named sets, in the order of ``Named``'s classes."""
    sets = run.recipe.named_sets
    return [readable(name) for s in sets for name in class_names(run.data, s).values()]


def embedded(run: Run, text_encoder: TextEncoder, names: Sequence[str]) -> Tensor:
    """Return the text embeddings of names, T×D, which the folder of the states keeps."""
    if not names:
        return torch.empty(0, run.config.text_dim)
    folder, origin = Folder(run.folder), [run.text_tower, run.clip, *names]
    known = load_tensors(folder, NAMES) if folder.exists(NAMES) else {}
    if known.get("origin") != origin:
        known = {"origin": origin, "names_TD": class_embeddings(text_encoder, names)}
        if workers.rank() == 0:
            save_tensors(folder, NAMES, known)
    return cast(Tensor, known["names_TD"])


def merge_vit_b(run: Run) -> Merged:
    """Run the paper's merge: the student is SAM with a new Head_CLIP, the text tower is CLIP's."""
    words = load_words(run.clip)
    sam_teacher, config = load_sam(run.sam)
    start = sam_teacher
    if run.start:
        start, config = load_sam(run.start)
    _check_start(config)
    config = replace(words.describe_in(config), name=run.recipe.name)
    run = replace(run, config=config)
    _check_frames(sam_teacher, start)
    net = student_from_sam(start, run.config)
    names_LD = embedded(run, words.text_encoder, names_of(run))
    clip = words.teacher.to(run.device)
    teachers = PhotoTeachers(clip, names_LD.to(run.device), words.text_encoder)
    distil(run, net, teachers, sam_teacher.to(run.device))
    given = {"sam": run.sam} | ({"start": run.start} if run.start else {})
    files = {"clip": words.weights} | {key: sam_weights(sam) for key, sam in given.items()}
    origins = {key: named(file) for key, file in files.items()}
    origins["clip_model"] = config.text.model
    parts = parts_of(files.values())
    return Merged(net, words.text_encoder, run.config, origins, parts)


def _check_start(config: SamClipConfig) -> None:
    """Raise CheckpointError if a student cannot have this encoder."""
    if config.vit is None:
        raise CheckpointError(
            f"the encoder of {config.name}, {config.backbone}, is not one of SAM's, so no student "
            "starts from it: give --start, weights of SAM ViT-B, L, H or MobileSAM or a checkpoint "
            "that has one of them"
        )


def _check_frames(teacher: SamClipNet, start: SamClipNet) -> None:
    """Raise ValueError if the masks of the SAM teacher and of the student differ in size."""
    sizes = [net.prompt_encoder.input_image_size for net in (teacher, start)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"the SAM teacher segments frames of {sizes[0]} pixels, the student's SAM frames of "
            f"{sizes[1]}: give --mask-teacher and --start of one frame size"
        )


MERGES = {"edge": merge_edge, "vit-b": merge_vit_b}


def distil(
    run: Run,
    net: SamClipNet,
    teachers: PhotoTeachers,
    sam_teacher: SamClipNet,
) -> None:
    """Run the paper's three stages, or those of them that the recipe sets."""
    recipe = run.recipe
    clip = [teachers.clip] if isinstance(teachers.clip, nn.Module) else []
    stages.prepare(recipe, net, [sam_teacher, *clip])
    if recipe.head_probing:
        stages.head_probing(run, net, teachers, recipe.head_probing)
    if recipe.joint:
        stages.joint_distillation(run, net, teachers, sam_teacher, recipe.joint)
    if recipe.adaptation:
        stages.resolution_adaptation(run, net, teachers, recipe.adaptation)


def named(teacher: Path) -> str:
    """Return the name and the digest of a teacher's file or checkpoint."""
    if checkpoint.is_here(teacher):
        return f"{checkpoint.read_config(teacher).name} {checkpoint.digest(teacher)}"
    return f"{teacher.name} {checkpoint.sha256(teacher)}"


def parts_of(teachers: Iterable[Path]) -> list[Part]:
    """Return the parts of the teachers, each once, with their licences as far as they are known."""
    parts = [part for teacher in teachers for part in _parts(teacher)]
    return [part for number, part in enumerate(parts) if part not in parts[:number]]


def licences(parts: Sequence[Part]) -> dict[str, Any]:
    """Return what a lineage says of its teachers' parts: each of them, and the strictest licence.

    Without parts, which only a student of this project's own teachers is, it says nothing.
    """
    if not parts:
        return {}
    return {"published": [*parts], "licence": strictest(part["licence"] for part in parts)}


def _parts(teacher: Path) -> list[Part]:
    if not checkpoint.is_here(teacher):
        return [_of_file(teacher.name, checkpoint.sha256(teacher))]
    lineage = checkpoint.read_lineage(teacher)
    published: list[Part] = lineage.get("published", [])
    if published:
        return published
    parts = [
        _of_file(source["file"], source["sha256"], RADIO if name == "radio" else NOT_STATED)
        for name, source in lineage.get("sources", {}).items()
    ]
    return parts or [{"address": named(teacher), "licence": NOT_STATED}]


def _of_file(name: str, sha256: str, otherwise: str = NOT_STATED) -> Part:
    """Return a file with the licence of the published model whose digest it has."""
    for source in [source for model in MODELS.values() for source in model.sources]:
        if sha256 in source.files.values():
            return {"address": source.address, "licence": source.licence}
    return {"address": f"{name} {sha256}", "licence": otherwise}

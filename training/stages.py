"""The stages of the merge: the edge SAM teacher, head probing, joint distillation.

Only the first is not the paper's: at this size there is no published SAM to start from. Networks
stay in evaluation mode throughout: the trunk's batch statistics are ImageNet's and never move, so
an answer never depends on a batch.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samclip_core import checkpoint
from samclip_core.edge import EdgeEncoder
from samclip_core.network import SAM_HEAD_PARTS, SamClipNet
from training.data import Frame, Sample, cut, read_shards, regions
from training.loop import fit, optimizer
from training.losses import clip_loss, sam_distillation_loss, sam_loss
from training.recipes import Run
from training.segmentation import Batch, Prompts, decode, make_batch, segment_step
from training.teachers import ClipTeacher, load_trunk

SAM_PARTS = ("image_encoder", *SAM_HEAD_PARTS)
Rng = tuple[np.random.Generator, torch.Generator]


def seeded(run: Run, stage: int, step: int) -> Rng:
    """The random numbers of one step: they depend on nothing that was drawn before."""
    seeds = np.random.SeedSequence([run.recipe.seed, stage, step]).generate_state(2)
    return np.random.default_rng(seeds[0]), torch.Generator().manual_seed(int(seeds[1]))


class RegionSampler:
    """Batches of frames with masks that people outlined, or only their prompts."""

    def __init__(self, run: Run, size: int) -> None:
        self.batch, self.size = run.recipe.sam_batch, size
        samples = [
            (sample, regions(sample), weight)
            for source, weight in run.recipe.region_sets
            for sample in read_shards(run.data, source, "train")
        ]
        self.pool = [(sample, rles) for sample, rles, _ in samples if rles]
        weights = np.array([weight for _, rles, weight in samples if rles])
        self.share = weights / weights.sum()

    def draw(self, random: Rng) -> Batch:
        """One batch; frames whose masks were all cut away are drawn again."""
        rng, generator = random
        frames: list[Frame] = []
        while len(frames) < self.batch.images:
            sample, rles = self.pool[rng.choice(len(self.pool), p=self.share)]
            # A few more than needed: the cut loses some.
            chosen = [rles[i] for i in rng.permutation(len(rles))[: self.batch.prompts + 6]]
            frame = cut(sample, chosen, self.size, self.size // 2, rng)
            if len(frame.masks_Pmm):
                frames.append(frame)
        return make_batch(frames, self.batch.prompts, self.size, generator)

    def rounds(self, random: Rng) -> int:
        """One prompt, or sometimes a correcting click after it."""
        return 2 if random[0].random() < self.batch.second_round else 1


class PhotoSampler:
    """Batches of photographs, without any label."""

    def __init__(self, run: Run, size: int) -> None:
        self.images, self.size = run.recipe.clip_images, size
        self.pool: list[Sample] = [
            sample
            for source in run.recipe.photo_sets
            for sample in read_shards(run.data, source, "train")
        ]

    def draw(self, random: Rng) -> tuple[Tensor, Tensor]:
        """``pixels_B3SS`` float 0..255 and the valid ``sizes_B2``."""
        rng = random[0]
        chosen = [self.pool[i] for i in rng.integers(len(self.pool), size=self.images)]
        frames = [cut(sample, (), self.size, 1, rng, scales=(0.7, 1.3)) for sample in chosen]
        pixels_B3SS = torch.from_numpy(np.stack([frame.pixels_3SS for frame in frames])).float()
        return pixels_B3SS, torch.tensor([frame.valid for frame in frames])


def train_sam_teacher(run: Run, teacher: SamClipNet) -> None:
    """Teach the edge SAM to segment what is pointed at, from ImageNet weights or a checkpoint's."""
    encoder = _edge_encoder(teacher)
    if run.start:
        checkpoint.load_weights(checkpoint.resolve(run.start), teacher, SAM_PARTS)
    else:
        load_trunk(encoder)
    encoder.trunk.requires_grad_(run.recipe.sam_teacher.encoder_rate > 0)
    teacher.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    sampler = RegionSampler(run, encoder.image_size)
    trunk, others = _split(teacher, encoder.trunk)
    schedule = run.recipe.sam_teacher

    def step(number: int) -> dict[str, Tensor]:
        random = seeded(run, 0, number)
        batch = sampler.draw(random)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            sam_BDhw = teacher.image_encoder(batch.pixels_B3SS, batch.sizes_B2).sam_BDhw
            loss = segment_step(
                teacher.prompt_encoder,
                teacher.mask_decoder,
                sam_BDhw,
                batch,
                sampler.rounds(random),
                lambda logits_P4mm, iou_P4, _: sam_loss(logits_P4mm, iou_P4, batch.target_Pmm),
                random[1],
            )
        loss.backward()
        return {"sam": loss.detach()}

    fit("sam-teacher", teacher, optimizer(schedule, trunk, others), schedule, step, run.folder)


def head_probing(run: Run, net: SamClipNet, clip_teacher: ClipTeacher) -> None:
    """Stage I: only Head_CLIP learns, the encoder is still SAM's."""
    net.requires_grad_(False)
    net.clip_head.requires_grad_(True)
    sampler = PhotoSampler(run, _edge_encoder(net).image_size)
    schedule = run.recipe.head_probing
    clip_step = _clip_step(run, net, clip_teacher)

    def step(number: int) -> dict[str, Tensor]:
        loss, shown = clip_step(*sampler.draw(seeded(run, 1, number)))
        loss.backward()
        return shown

    parameters = net.clip_head.parameters()
    fit("head-probing", net.eval(), optimizer(schedule, (), parameters), schedule, step, run.folder)


def joint_distillation(
    run: Run, net: SamClipNet, clip_teacher: ClipTeacher, sam_teacher: SamClipNet
) -> None:
    """Stage II: encoder and both heads learn, one optimizer step for a batch of each teacher.

    The prompt encoder stays frozen; the encoder and Head_SAM learn at a fraction of Head_CLIP's
    rate (paper, section 2).
    """
    sam_teacher.requires_grad_(False)
    net.requires_grad_(True)
    net.prompt_encoder.requires_grad_(False)
    net.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    size = _edge_encoder(net).image_size
    photos, outlined = PhotoSampler(run, size), RegionSampler(run, size)
    schedule, weight = run.recipe.joint, run.recipe.sam_weight
    clip_step, sam_step = _clip_step(run, net, clip_teacher), _sam_step(net, sam_teacher)

    def step(number: int) -> dict[str, Tensor]:
        random = seeded(run, 2, number)
        clip, shown = clip_step(*photos.draw(random))
        clip.backward()
        sam = sam_step(outlined.draw(random), outlined.rounds(random), random[1])
        (weight * sam).backward()
        return shown | {"sam": sam.detach()}

    slow, fast = [*net.image_encoder.parameters(), *net.mask_decoder.parameters()], net.clip_head
    optimiser = optimizer(schedule, slow, fast.parameters())
    fit("joint", net, optimiser, schedule, step, run.folder)


def _clip_step(
    run: Run, net: SamClipNet, teacher: ClipTeacher
) -> Callable[[Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]:
    """L_CLIP on the pooled embedding and, beyond the paper, on the patches under each teacher's."""

    def loss(pixels_B3SS: Tensor, sizes_B2: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            target_BDhw, target_BD = teacher(pixels_B3SS, sizes_B2)
            _, dense_BDhw, pooled_BD = net.encode(pixels_B3SS, sizes_B2)
        pooled = clip_loss(pooled_BD.float(), target_BD.float()).mean()
        coarse_BDhw = F.adaptive_avg_pool2d(dense_BDhw.float(), target_BDhw.shape[-2:])
        dense = clip_loss(coarse_BDhw.flatten(2).mT, target_BDhw.float().flatten(2).mT).mean()
        shown = {"clip": pooled.detach(), "dense": dense.detach()}
        return pooled + run.recipe.dense_weight * dense, shown

    return loss


def _sam_step(
    net: SamClipNet, teacher: SamClipNet
) -> Callable[[Batch, int, torch.Generator], Tensor]:
    """L_SAM against the teacher's mask scores for the same prompts (paper, equation 2)."""

    def loss(batch: Batch, rounds: int, generator: torch.Generator) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.no_grad():
                taught_BDhw = teacher.image_encoder(batch.pixels_B3SS, batch.sizes_B2).sam_BDhw

            def criterion(
                logits_P4mm: Tensor, iou_P4: Tensor, prompts: Prompts
            ) -> tuple[Tensor, Tensor]:
                with torch.no_grad():
                    taught = decode(
                        teacher.prompt_encoder, teacher.mask_decoder, taught_BDhw, batch, prompts
                    )
                return sam_distillation_loss(logits_P4mm, iou_P4, *taught)

            sam_BDhw = net.image_encoder(batch.pixels_B3SS, batch.sizes_B2).sam_BDhw
            parts = net.prompt_encoder, net.mask_decoder
            return segment_step(*parts, sam_BDhw, batch, rounds, criterion, generator)

    return loss


def _edge_encoder(net: SamClipNet) -> EdgeEncoder:
    """The image encoder of a net that was built as ``edge``, the only size trained here."""
    assert isinstance(net.image_encoder, EdgeEncoder)
    return net.image_encoder


def _split(
    model: nn.Module, pretrained: nn.Module
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    slow = list(pretrained.parameters())
    known = {id(parameter) for parameter in slow}
    return slow, [p for p in model.parameters() if id(p) not in known]

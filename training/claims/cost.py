"""``samclip cost``: what one merged encoder costs beside the two that it replaces.

The paper argues with "one forward pass" and gives no figure. Each model answers the same questions:
masks and words of one new photograph, either alone, then one more click and one more text.
"""

import argparse
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from ctypes import CDLL
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import process_time
from typing import NamedTuple

import torch
from rich_argparse import RawDescriptionRichHelpFormatter
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from samclip_core.commands.measured import peak_megabytes
from samclip_core.config import EDGE, VIT_B, SamClipConfig
from samclip_core.engine.base import PromptBatch
from samclip_core.engine.choice import click, noise
from samclip_core.engine.torch_engine import TorchEngine
from samclip_core.errors import SamClipError
from samclip_core.io import checkpoint
from samclip_core.nn.network import SAM_PARTS, SamClipNet, build, load_net
from samclip_core.nn.text_encoder import TextEncoder, build_text_encoder, load_text_encoder
from training.claims.retention import TeacherPair
from training.distillation.teachers import ClipTeacher
from training.results.tables import table

QUESTIONS = BOTH, MASKS, WORDS, CLICK, TEXT = (
    *("masks and words", "masks alone", "words alone"),
    *("one more click", "one more text"),
)
HEAD = ("model", "asked for", "M parameters", "GFLOP", "CPU ms", "MB")
PAIR = replace(VIT_B, kind="pair", name="sam-b+clip-l", clip_head=None)
EDGE_TEACHERS = "edge-teachers"
SHAPES = {config.name: config for config in (VIT_B, PAIR)}
"""Models of official shapes, whose weights are random here: they cost the same."""


class Row(NamedTuple):
    """The cost of one question: parameters, operations (two per multiplication), CPU time, memory.

    Memory is that of the weights and of what the question adds at its peak.
    """

    model: str
    question: str
    parameters: int
    flop: int
    seconds: float
    megabytes: float

    def cells(self) -> list[str]:
        numbers = self.parameters / 1e6, self.flop / 1e9
        shown = (f"{number:,.1f}" for number in numbers)
        return [*self[:2], *shown, f"{1000 * self.seconds:,.0f}", f"{self.megabytes:,.0f}"]


class Asked(NamedTuple):
    """A question to the networks, and those that answer it."""

    run: Callable[[], object]
    parts: list[nn.Module]


def networks(name: str) -> tuple[SamClipConfig, SamClipNet, TextEncoder]:
    """Return a model by its name: a shape, the teachers of ``edge``, or a checkpoint.

    Raises CheckpointError if there is no such checkpoint.
    """
    if name in SHAPES:
        config = SHAPES[name]
        return config, build(config).eval(), build_text_encoder(config.text)
    if name == EDGE_TEACHERS:
        clip = ClipTeacher(torch.zeros(1000, EDGE.text_dim))
        net = TeacherPair(build(EDGE, SAM_PARTS), clip).eval()
        return EDGE, net, load_text_encoder(checkpoint.resolve("edge"))
    directory = checkpoint.resolve(name)
    config = checkpoint.read_config(directory)
    return config, load_net(directory), load_text_encoder(directory)


def questions(name: str) -> dict[str, Asked]:
    """Return what can be asked of a model; without masks, words and texts alone."""
    config, net, text = networks(name)
    head = net.clip_teacher if isinstance(net, TeacherPair) else net.clip_head
    own = isinstance(net, TeacherPair) or getattr(head, "reads_pixels", False)
    side = config.image_size
    frame, words = _frame(side), _frame(config.size_of("classify"))
    encoder, tower = net.image_encoder, [head] if own else [net.image_encoder, head]
    asked = {
        WORDS: Asked(partial(head if own else net.encode, *words), tower),
        TEXT: Asked(partial(text, torch.from_numpy(text.tokenizer(["a cat"]))), [text]),
    }
    if config.masks:
        sam_1Dhw = torch.zeros(1, config.embed_dim, config.grid, config.grid)
        engine = TorchEngine(net, None)
        given = click(config, sam_1Dhw.numpy(), (side / 2, side / 2))
        decode = partial(engine.decode, given[0], PromptBatch(*given[1:]))
        asked |= {
            BOTH: Asked(partial(net.encode, *frame), [encoder, head]),
            MASKS: Asked(partial(encoder, *frame), [encoder]),
            CLICK: Asked(decode, [net.prompt_encoder, net.mask_decoder]),
        }
    return asked


def _frame(side: int) -> tuple[Tensor, Tensor]:
    pixels_13SS, sizes_12 = map(torch.from_numpy, noise(side))
    return pixels_13SS.float(), sizes_12


@torch.inference_mode()
def measure(name: str, runs: int) -> Iterator[Row]:
    """Yield the cost of each question to a model."""
    asked_of = questions(name)
    for question in filter(asked_of.__contains__, QUESTIONS):
        asked, seconds = asked_of[question], list[float]()
        weights = sum(p.numel() for part in asked.parts for p in part.parameters())
        _forget_peak()
        before = peak_megabytes()
        for _ in range(runs):
            begin = process_time()
            asked.run()
            seconds.append(process_time() - begin)
        added = peak_megabytes() - before
        torch.backends.mha.set_fastpath_enabled(False)  # fused operations are not counted
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            asked.run()
        torch.backends.mha.set_fastpath_enabled(True)
        flop, megabytes = counter.get_total_flops(), 4 * weights / 2**20 + added
        yield Row(name, question, weights, flop, min(seconds), megabytes)


def _forget_peak() -> None:
    """Give freed memory back, and have Linux count the peak from now on; elsewhere it is 0."""
    gc.collect()
    if sys.platform == "linux":
        if hasattr(libc := CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def summary(measured: Sequence[Row]) -> str:
    """Return what the first model saves of each other one where both answer everything."""
    first, *others = [row for row in measured if row.question == BOTH]
    return "".join(
        f"{BOTH}: {first.model} takes {first.seconds / other.seconds:.2f} of the CPU time, "
        f"{first.flop / other.flop:.2f} of the operations and "
        f"{first.parameters / other.parameters:.2f} of the parameters of {other.model}\n"
        for other in others
    )


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="samclip cost",
        description="Measure what models cost on this machine's CPU, by PyTorch. CPU ms are\n"
        "those of all its cores together.",
        epilog=f"examples:\n  samclip cost vit-b sam-b+clip-l\n  samclip cost edge {EDGE_TEACHERS}",
        formatter_class=RawDescriptionRichHelpFormatter,
    )
    shapes = f"checkpoints, and {', '.join(SHAPES)} (random weights) or {EDGE_TEACHERS}"
    made.add_argument("models", nargs="+", metavar="MODEL", help=shapes)
    made.add_argument("--runs", type=int, default=3, help="the fastest one counts (%(default)s)")
    threads = torch.get_num_threads()
    made.add_argument("--threads", type=int, default=threads, help="CPU threads (all)")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row per model and question, and what the first model saves of the others."""
    args = parser().parse_args(argv)
    try:
        torch.set_num_threads(max(1, args.threads))
        measured = [row for name in args.models for row in measure(name, max(1, args.runs))]
    except (SamClipError, OSError) as error:
        print(f"samclip cost: {error}", file=sys.stderr)
        return 1
    print(table(HEAD, [row.cells() for row in measured]))
    print(summary(measured), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

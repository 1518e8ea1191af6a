"""The torch engine: for GPUs, and the reference on a CPU. Shape letters as in ``base``."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from samclip_core.engine.base import PARTS, Dtype, Encoded, EngineName, Network, PromptBatch
from samclip_core.engine.compiling import CompiledEncoder, Encode, on_host
from samclip_core.errors import CheckpointError
from samclip_core.geometry import FloatArray
from samclip_core.nn.network import ENCODER_PARTS, SAM_HEAD_PARTS, SamClipNet, load_net
from samclip_core.nn.sam_head import cast_weights, fold_norms
from samclip_core.nn.text_encoder import TextEncoder, load_text_encoder

NET_PARTS: dict[Network, tuple[str, ...]] = {
    "image_encoder": ENCODER_PARTS,
    "mask_decoder": SAM_HEAD_PARTS,
    "text_encoder": (),
}


def check_device(device: str) -> None:
    """Raise CheckpointError if PyTorch cannot use a device."""
    try:
        torch.zeros(1).to(device)
    except (RuntimeError, AssertionError) as error:  # the latter from a torch built without it
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"PyTorch {torch.__version__} cannot use the device {device!r} here ({reason}): "
            "install its driver and a PyTorch for it, or choose cpu"
        ) from error


class TorchEngine:
    """An engine over loaded modules that are frozen and in evaluation mode."""

    names: Mapping[Network, EngineName] = MappingProxyType(dict.fromkeys(PARTS, "torch"))
    decoder_dtype: Dtype = "float32"
    streams = 1
    batches = True
    measured_ms: Mapping[str, float] = MappingProxyType({})
    graphs = ""

    def __init__(
        self, net: SamClipNet, text_encoder: TextEncoder | None, dtype: Dtype = "float32"
    ) -> None:
        """``dtype`` is the autocast precision of the image encoder; not int8."""
        self.net = net
        self.text_encoder = text_encoder
        self.dtype = dtype
        modules = nn.ModuleList([net, *([text_encoder] if text_encoder else [])])
        self._device = next(modules.parameters(), torch.empty(0)).device
        self.device = str(self._device)
        self._encode = _encoder(net, self._device, dtype)
        if self._device.type == "cuda":
            self._encode = CompiledEncoder(self._encode)

    @classmethod
    def load(
        cls, directory: Path, device: str, dtype: Dtype, parts: Collection[Network] = PARTS
    ) -> Self:
        """Load parts of a checkpoint.

        Raises CheckpointError if one is missing or damaged, or PyTorch cannot use the device.
        """
        check_device(device)
        names = [name for part in parts for name in NET_PARTS[part]]
        net = load_net(directory, names).to(device)
        text_encoder = load_text_encoder(directory).to(device) if "text_encoder" in parts else None
        if "image_encoder" in parts and not device.startswith("cpu"):
            fold_norms(net.image_encoder)
            if dtype != "float32":
                cast_weights(net.image_encoder, getattr(torch, dtype))
                cast_weights(net.clip_head, getattr(torch, dtype))
        return cls(net, text_encoder, dtype)

    @torch.inference_mode()
    def encode(self, pixels_B3SS: NDArray[np.uint8], sizes_B2: NDArray[np.int64]) -> Encoded:
        """See ``base``; returns float16 from NVIDIA's and AMD's GPUs, float32 from others."""
        with _memory_checked():
            outputs = self._encode(self._moved(pixels_B3SS), self._moved(sizes_B2))
            return Encoded.of(on_host(outputs))

    @torch.inference_mode()
    def decode(
        self, sam_BDhw: FloatArray, prompts: PromptBatch
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        image_P, *prompt = [self._moved(array) for array in prompts]
        sparse_PND, dense_PDhw = self.net.prompt_encoder.embed(*prompt)
        logits_PMmm, iou_PM = self.net.mask_decoder.decode(
            self._moved(sam_BDhw).float(),
            self.net.prompt_encoder.positions(),
            sparse_PND,
            dense_PDhw,
            image_P,
        )
        return logits_PMmm.cpu().numpy(), iou_PM.cpu().numpy()

    @torch.inference_mode()
    def embed_text(self, ids_TN: NDArray[np.int64]) -> NDArray[np.float32]:
        if self.text_encoder is None:
            raise ValueError("this engine has no text encoder: load it with the part text_encoder")
        text_TD: Tensor = self.text_encoder(self._moved(ids_TN))
        return text_TD.cpu().numpy()

    def _moved(self, array: NDArray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if self._device.type == "cuda":
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor.to(self._device)

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context that the image encoder needs, whose weights may have its dtype."""
        return _autocast(self._device, self.dtype)


def _encoder(net: SamClipNet, device: torch.device, dtype: Dtype) -> Encode:
    stored = torch.float16 if device.type == "cuda" else torch.float32

    def encode(pixels_B3SS: Tensor, sizes_B2: Tensor) -> list[Tensor]:
        with _autocast(device, dtype):
            encoded = net.encode(pixels_B3SS.float(), sizes_B2)
        return [output.to(stored) for output in encoded if output is not None]

    return encode


def _autocast(device: torch.device, dtype: Dtype) -> AbstractContextManager[object]:
    if dtype == "float32":
        return nullcontext()
    return torch.autocast(device.type, getattr(torch, dtype))


@contextmanager
def _memory_checked() -> Iterator[None]:
    """Turn torch's out-of-memory errors, of GPU and CPU, into MemoryError."""
    try:
        yield
    except RuntimeError as error:
        out = "DefaultCPUAllocator" in str(error) or "out of memory" in str(error)  # CPU, Apple
        if out or isinstance(error, torch.OutOfMemoryError):
            raise MemoryError(str(error)) from error
        raise

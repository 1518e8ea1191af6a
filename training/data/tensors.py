"""Copy nested dataclasses and lists of tensors: to page-locked memory, to a device."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def pinned(value: T) -> T:
    """Return ``value`` in page-locked memory, from which a GPU copies while it computes."""
    return _changed(value, Tensor.pin_memory)


def on_device(value: T, device: torch.device) -> T:
    """Return ``value`` on ``device``; uint8 tensors, which are pixels, become float32 there."""

    def move(tensor: Tensor) -> Tensor:
        moved = tensor.to(device, non_blocking=True)
        return moved.float() if moved.dtype == torch.uint8 else moved

    return _changed(value, move)


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list):
        return [_changed(item, change) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
        return replace(value, **{name: _changed(part, change) for name, part in parts.items()})
    return value

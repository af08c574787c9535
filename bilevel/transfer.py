"""Tensors on their way to a device."""

from __future__ import annotations

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on a device, without waiting for what that device still computes."""
    device = torch.device(device)
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()  # CUDA waits before it copies from other memory
    return tensor.to(device, non_blocking=True)

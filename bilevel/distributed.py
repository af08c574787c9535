"""What changes when several processes train together."""

from __future__ import annotations

import torch.distributed as dist


def world_size() -> int:
    """Number of processes; 1 outside ``torchrun``."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number; 0 outside ``torchrun``."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0

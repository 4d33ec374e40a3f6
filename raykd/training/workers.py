"""TODO: docstring."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist


def from_first_worker(value: Any) -> Any:
    """The first worker's value, on every worker."""
    return from_all_workers(value)[0]


def from_all_workers(value: Any) -> list[Any]:
    """The values of all workers, by rank."""
    if not dist.is_initialized():
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found

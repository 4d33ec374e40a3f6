"""The workers of a training: this worker's rank, exchange between workers, and the student in parallel."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from raykd.models.load import model_blocks
from raykd.training.student import Student


def rank() -> int:
    """This worker's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of workers."""
    return dist.get_world_size() if dist.is_initialized() else 1


def from_first_worker(value: Any) -> Any:
    """The first worker's value, on every worker."""
    return from_all_workers(value)[0]


def from_all_workers(value: Any) -> list[Any]:
    """The values of all workers, by rank."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def sum_over_workers(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of all workers' tensors, in place; the tensor must be on the worker's device."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def parallelised(student: Student, parallel: str, device: torch.device) -> Any:
    """The student wrapped for several workers: unchanged for one worker, else DDP, or FSDP2 for parallel `fsdp`."""
    blocks = model_blocks(student.model)
    if parallel == "fsdp" and dist.is_initialized():
        mesh = dist.device_mesh.init_device_mesh(device.type, (world_size(),))
        for block in blocks:
            fully_shard(block, mesh=mesh)
        return fully_shard(student, mesh=mesh)
    return DistributedDataParallel(student) if world_size() > 1 else student


def unwrapped(parallel: Any) -> Student:
    """The student inside what `parallelised` returned."""
    return parallel.module if isinstance(parallel, DistributedDataParallel) else parallel


def gradient_sync(parallel: Any, last: bool) -> AbstractContextManager:
    """A context for a micro-batch's backward pass: workers exchange gradients only in a step's last micro-batch."""
    if isinstance(parallel, DistributedDataParallel):
        return nullcontext() if last else parallel.no_sync()
    if hasattr(parallel, "set_requires_gradient_sync"):
        parallel.set_requires_gradient_sync(last)
    return nullcontext()

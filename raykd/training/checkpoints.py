"""Checkpoints of a training. They load at any number of workers.

A checkpoint is a folder of `torch.distributed.checkpoint`, each worker's part written by itself, and
`cursor-<rank>.json`: the sizes of the files that this worker wrote and, from the first worker, the training's progress.
"""

from __future__ import annotations

import json
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as read_parts
from torch.distributed.checkpoint.state_dict_saver import save as write_parts

from raykd.errors import TrainingError, first_line

CURSOR = "cursor-{}.json"


def save_checkpoint(folder: Path, student: Any, optimizer: Any, progress: dict[str, Any], rank: int) -> None:
    """Write this worker's part of a checkpoint into `folder`; all workers must call. Raises TrainingError.

    `progress` is `Progress.state()`.
    """
    weights, state = get_state_dict(student, optimizer, options=_options(student))
    try:
        with _quiet():
            write_parts(
                {"model": weights, "optimizer": state}, checkpoint_id=str(folder), no_dist=not dist.is_initialized()
            )
        sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        (folder / CURSOR.format(rank)).write_text(json.dumps({"sizes": sizes, **(progress if rank == 0 else {})}))
    except Exception as error:  # DCP wraps what happened in its own kinds
        raise TrainingError(f"{folder}: the checkpoint cannot be written: {first_line(error)}") from None


def best_step(folder: Path) -> int:
    """The step whose model was the best when a checkpoint was written."""
    return _progress(folder)["best_step"]


def _progress(folder: Path) -> dict[str, Any]:
    return json.loads((folder / CURSOR.format(0)).read_text())


def load_checkpoint(folder: Path, student: Any, optimizer: Any) -> dict[str, Any]:
    """Load a checkpoint into a student and its optimizer; returns its `Progress.state()`.

    Raises TrainingError if it is damaged.
    """
    try:
        for file in sorted(folder.glob(CURSOR.format("*"))):
            for name, size in json.loads(file.read_text())["sizes"].items():
                present = (folder / name).stat().st_size if (folder / name).exists() else 0
                if present != size:
                    raise ValueError(f"{name} has {present} bytes, not the {size} that were written")
        progress = _progress(folder)
        weights, state = get_state_dict(student, optimizer, options=_options(student))
        parts = {"model": weights, "optimizer": state}
        with _quiet():
            read_parts(parts, checkpoint_id=str(folder), no_dist=not dist.is_initialized())
        set_state_dict(
            student,
            optimizer,
            model_state_dict=parts["model"],
            optim_state_dict=parts["optimizer"],
            options=_options(student),
        )
    except Exception as error:
        raise TrainingError(f"{folder}: damaged checkpoint: {first_line(error)}") from None
    del progress["sizes"]
    return progress


def _options(student: Any) -> StateDictOptions:
    frozen = any(not p.requires_grad for p in student.parameters())
    return StateDictOptions(ignore_frozen_params=frozen, strict=not frozen)


@contextmanager
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

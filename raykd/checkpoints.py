"""Checkpoints of a training, and the model that comes out of it. They load at any number of workers.

A checkpoint is a folder of `torch.distributed.checkpoint`, each worker's part written by itself, and
`cursor-<rank>.json`: the sizes of what that worker wrote and, from the first, how far the training was.
"""

from __future__ import annotations

import json
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as read_parts
from torch.distributed.checkpoint.state_dict_saver import save as write_parts

from raykd.errors import TrainingError
from raykd.run import replaced

CURSOR = "cursor-{}.json"


def save(folder: Path, student: Any, optimizer: Any, cursor: dict[str, Any], rank: int) -> None:
    """Write this worker's part of a checkpoint into `folder`; all workers must call. Raises TrainingError."""
    weights, state = get_state_dict(student, optimizer, options=_options(student))
    try:
        with _quiet():
            write_parts(
                {"model": weights, "optimizer": state}, checkpoint_id=str(folder), no_dist=not dist.is_initialized()
            )
        sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        (folder / CURSOR.format(rank)).write_text(json.dumps({"sizes": sizes, **(cursor if rank == 0 else {})}))
    except Exception as error:  # DCP wraps what happened in its own kinds
        raise TrainingError(f"{folder}: the checkpoint cannot be written: {_first_line(error)}") from None


def best_step(folder: Path) -> int:
    """The step whose model was the best when a checkpoint was written."""
    return _cursor(folder)["best_step"]


def _cursor(folder: Path) -> dict[str, Any]:
    return json.loads((folder / CURSOR.format(0)).read_text())


def load(folder: Path, student: Any, optimizer: Any) -> dict[str, Any]:
    """Load a checkpoint into a student and its optimizer; returns the cursor. Raises TrainingError if it is damaged."""
    try:
        for file in sorted(folder.glob(CURSOR.format("*"))):
            for name, size in json.loads(file.read_text())["sizes"].items():
                found = (folder / name).stat().st_size if (folder / name).exists() else 0
                if found != size:
                    raise ValueError(f"{name} has {found} bytes, not the {size} that were written")
        cursor = _cursor(folder)
        weights, state = get_state_dict(student, optimizer, options=_options(student))
        held = {"model": weights, "optimizer": state}
        with _quiet():
            read_parts(held, checkpoint_id=str(folder), no_dist=not dist.is_initialized())
        set_state_dict(
            student,
            optimizer,
            model_state_dict=held["model"],
            optim_state_dict=held["optimizer"],
            options=_options(student),
        )
    except Exception as error:
        raise TrainingError(f"{folder}: damaged checkpoint: {_first_line(error)}") from None
    del cursor["sizes"]
    return cursor


def export(folder: Path, student: Any, tokenizer: Any, rank: int) -> None:
    """Write the model as a Hugging Face folder, whole or not at all; all workers must call. LoRA is merged.

    Raises TrainingError where it cannot be written.
    """
    model: Any = student.model
    sharded = any(hasattr(p, "full_tensor") for p in model.parameters())
    lora = hasattr(model, "peft_config")
    weights = None
    if sharded or lora:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        tied = {n for n, _ in model.named_parameters(remove_duplicate=False)} - {n for n, _ in model.named_parameters()}
        whole = get_model_state_dict(model, options=options)
        weights = {name: weight for name, weight in whole.items() if name not in tied}
    if rank:
        return
    if lora:
        weights, model = merged(weights or {}, model), model.get_base_model()
    try:
        with replaced(folder) as part:
            model.save_pretrained(part, **({"state_dict": weights} if weights is not None else {}))
            tokenizer.save_pretrained(part)
    except Exception as error:  # safetensors has an error of its own
        raise TrainingError(f"{folder}: the model cannot be written: {_first_line(error)}") from None


def merged(weights: dict[str, Any], model: Any) -> dict[str, torch.Tensor]:
    """Weights of a LoRA model as those of its base: W + scaling B A (Hu et al. 2021, section 4.1)."""
    found = {}
    for name, weight in weights.items():
        if ".lora_" in name:
            continue
        plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        stem = name.removesuffix("base_layer.weight")
        down = weights.get(f"{stem}lora_A.default.weight") if stem != name else None
        if down is not None:
            layer = model.get_submodule(stem.rstrip("."))
            change = layer.scaling["default"] * (weights[f"{stem}lora_B.default.weight"].float() @ down.float())
            weight = (weight.float() + (change.T if layer.fan_in_fan_out else change)).to(weight.dtype)
        found[plain] = weight
    return found


def _options(student: Any) -> StateDictOptions:
    frozen = any(not p.requires_grad for p in student.parameters())
    return StateDictOptions(ignore_frozen_params=frozen, strict=not frozen)


@contextmanager
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _first_line(error: BaseException) -> str:
    inner = error
    for deeper in list(getattr(error, "failures", {}).values()):
        inner = deeper[0] if isinstance(deeper, tuple) else deeper
    return (str(inner).splitlines() or [type(inner).__name__])[0]
